from __future__ import annotations

from bench.reward.groups import Group, Scores
from bench.reward.regroup import changed, regroupings

GROUPS = [Group("p", (9,), ("a", "b"), ((1,), (2, 2))), Group("q", (8,), ("c", "d", "e"), ((3,), (4,), (5,)))]
BASE: Scores = [[1.0, 2.0], [3.0, 4.0, 5.0]]


def honest(call: list[Group]) -> Scores:
    """A system whose score is the first id, whatever stands beside it."""
    return [[float(own[0]) for own in group.candidates] for group in call]


def test_a_system_free_of_its_batch_changes_nothing_in_any_regrouping() -> None:
    for one in regroupings(GROUPS):
        assert changed(BASE, one, [honest(call) for call in one.calls]) == 0, one.name


def test_a_system_that_looks_at_its_mates_is_found_out() -> None:
    def nosy(call: list[Group]) -> Scores:
        rows = zip(call, honest(call), strict=True)
        return [[score + 1e-12 * len(group.candidates) for score in row] for group, row in rows]

    found = {one.name: changed(nosy(GROUPS), one, [nosy(call) for call in one.calls]) for one in regroupings(GROUPS)}
    assert found["permuted"] == 0
    assert found["alone"] == 5
    assert found["with duplicates"] == 10


def test_every_regrouping_covers_every_candidate() -> None:
    for one in regroupings(GROUPS):
        assert set(one.places) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}, one.name
        assert len(one.places) == sum(len(group.candidates) for call in one.calls for group in call)
