from __future__ import annotations

import itertools

from bench.reward.division import passes, shares
from bench.reward.groups import Group


def group(prompt: int, *lengths: int) -> Group:
    candidates = tuple((index, *range(length - 1)) for index, length in enumerate(lengths))
    return Group("p", tuple(range(prompt)), tuple("t" for _ in lengths), candidates)


def twins(prompt: int) -> Group:
    return Group("p", tuple(range(prompt)), ("a", "b", "a"), ((1, 2), (3,), (1, 2)))


def test_every_place_is_in_exactly_one_pass() -> None:
    groups = [group(5, 3, 4, 5), twins(4), group(30, 2)]
    found = [place for one in passes(groups, 16) for part in one for where in part.places.values() for place in where]
    assert sorted(found) == [(g, c) for g, one in enumerate(groups) for c in range(len(one.candidates))]


def test_passes_keep_the_budget_and_share_the_prompt() -> None:
    found = passes([group(10, 5, 5, 5, 5)], 20)
    assert [[len(part.own) for part in one] for one in found] == [[2], [2]]
    assert all(sum(len(p.prompt) + sum(map(len, p.own)) for p in one) <= 20 for one in found)


def test_a_longer_sequence_goes_alone() -> None:
    assert [len(one) for one in passes([group(50, 1), group(2, 1)], 10)] == [1, 1]


def test_without_sharing_every_candidate_has_its_own_prompt() -> None:
    assert [len(part.own) for part in passes([group(2, 1, 1, 1)], 100, share=False)[0]] == [1, 1, 1]


def test_duplicates_are_scored_once_unless_that_is_off() -> None:
    assert [sorted(part.places.values()) for part in passes([twins(1)], 99)[0]] == [[[(0, 0), (0, 2)], [(0, 1)]]]
    assert [len(part.own) for part in passes([twins(1)], 99, dedup=False)[0]] == [3]


def test_a_budget_of_one_gives_every_candidate_a_pass() -> None:
    assert len(passes([group(2, 1, 1), group(3, 1)], 1, share=False)) == 3


def test_workers_get_every_candidate_once_and_about_the_same() -> None:
    groups = [group(4, 6, 6), group(4, 5, 5), group(4, 4, 4), group(4, 3, 3)]
    given = shares(groups, 2)
    places = [(which, index) for one in given for which, piece in one for index in piece]
    assert sorted(places) == list(itertools.product(range(4), range(2)))
    loads = [sum(groups[which].only(piece).useful for which, piece in one) for one in given]
    assert abs(loads[0] - loads[1]) <= 4


def test_one_problem_is_cut_for_two_workers_with_its_duplicates_together() -> None:
    given = shares([Group("p", (1,), ("a", "b", "a"), ((1, 2), (3,), (1, 2)))], 2)
    assert sorted(sorted(piece) for one in given for _, piece in one) == [[0, 2], [1]]
