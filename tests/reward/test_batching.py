from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acemath_reward.batching import Encoded, choose, cost, group

ids = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(tuple)
prompts = st.sampled_from([(), (1,), (1, 2, 3), tuple(range(10))])
sequences = st.lists(st.builds(Encoded, prompts, ids), min_size=1, max_size=30)


@given(sequences, st.integers(1, 60))
def test_a_batch_holds_the_oldest_and_keeps_to_its_budget(waiting: list[Encoded], budget: int) -> None:
    chosen = choose(waiting, budget)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 1 or cost(waiting[i] for i in chosen) <= budget


@given(sequences, st.integers(1, 60))
def test_batch_after_batch_takes_everything_once(waiting: list[Encoded], budget: int) -> None:
    left, taken = list(waiting), list[Encoded]()
    while left:
        chosen = choose(left, budget)
        taken += [left[i] for i in chosen]
        left = [sequence for i, sequence in enumerate(left) if i not in chosen]
    assert sorted(taken, key=repr) == sorted(waiting, key=repr)


@given(sequences)
def test_groups_hold_every_sequence_under_its_prompt(waiting: list[Encoded]) -> None:
    groups, positions = group(waiting)
    assert len({part.prompt for part in groups}) == len(groups)
    rebuilt = {
        place: Encoded(part.prompt, own)
        for part, places in zip(groups, positions, strict=True)
        for own, place in zip(part.candidates, places, strict=True)
    }
    assert [rebuilt[i] for i in range(len(waiting))] == waiting
    assert sum(part.tokens for part in groups) == cost(waiting)


def test_a_shared_prompt_costs_once() -> None:
    waiting = [Encoded((1,) * 90, (2,) * 5) for _ in range(4)]
    assert choose(waiting, 110) == [0, 1, 2, 3]
    assert choose(waiting, 109) == [0, 1, 2]


def test_a_budget_of_one_gives_every_candidate_a_batch_of_its_own() -> None:
    assert choose([Encoded((1, 2), (3,)), Encoded((1, 2), (4,))], 1) == [0]
