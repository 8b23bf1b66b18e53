from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from reward.models import cost

from acemath_reward.batching import SLACK, Encoded, Offer, Prompts, choose, group

ids = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(tuple)
prompts = st.sampled_from([(), (1,), (1, 2, 3), tuple(range(10))])
sequences = st.lists(st.builds(Encoded, prompts, ids), min_size=1, max_size=30)


def chosen_of(waiting: list[Encoded], budget: int) -> list[int]:
    prompts = Prompts().of(waiting)
    offers = [Offer(len(one.own), prompt) for one, prompt in zip(waiting, prompts, strict=True)]
    return choose(offers, budget)


@given(sequences, st.integers(1, 60))
def test_a_batch_holds_the_oldest_and_keeps_to_its_budget(waiting: list[Encoded], budget: int) -> None:
    chosen = chosen_of(waiting, budget)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    tokens, all_of_them = cost(waiting[i] for i in chosen), len(chosen) == len(waiting)
    assert len(chosen) == 1 or tokens <= budget or (all_of_them and tokens <= budget * (1 + SLACK))


@given(sequences, st.integers(1, 60))
def test_batch_after_batch_takes_everything_once(waiting: list[Encoded], budget: int) -> None:
    left, taken = list(waiting), list[Encoded]()
    while left:
        chosen = chosen_of(left, budget)
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


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=20))
def test_equal_prompts_are_one_object_as_long_as_somebody_waits_behind_it(drawn: list[list[int]]) -> None:
    prompts, waiting = Prompts(), [Encoded((*ids,), (1,)) for ids in drawn]
    found, again = prompts.of(waiting), prompts.of(waiting[::-1])
    assert [prompt.ids for prompt in found] == [tuple(ids) for ids in drawn]
    assert all(one is other for one, other in zip(found, again[::-1], strict=True))
    assert len(set(found)) == len(prompts._known) == len({tuple(ids) for ids in drawn})
    del found, again
    assert not prompts._known


def test_a_shared_prompt_costs_once() -> None:
    waiting = [Encoded((1,) * 90, (2,) * 5) for _ in range(12)]
    assert chosen_of(waiting, 110) == [0, 1, 2, 3]
    assert chosen_of(waiting, 109) == [0, 1, 2]


def test_no_small_pass_is_left_over() -> None:
    waiting = [Encoded((1,) * 90, (2,) * 5) for _ in range(9)]
    assert chosen_of(waiting, 108) == list(range(9)), "135 tokens are 25 % more"
    assert chosen_of(waiting, 107) == [0, 1, 2]


def test_a_budget_of_one_gives_every_candidate_a_batch_of_its_own() -> None:
    assert chosen_of([Encoded((1, 2), (3,)), Encoded((1, 2), (4,))], 1) == [0]


def cell(tokens: int, *chain: str, **flags: bool) -> Offer:
    return Offer(tokens, chain=chain, **flags)


def test_what_is_left_out_keeps_out_what_builds_on_it() -> None:
    waiting = [cell(5, "a"), cell(90, "b"), cell(1, "b", "b1"), cell(1, "b", "b2"), cell(1, "a", "a1")]
    assert choose(waiting, 10) == [0, 4]
    waiting = [cell(5, "a"), cell(9, "a", "a1"), cell(1, "a", "a1"), cell(1, "a", "a2")]
    assert choose(waiting, 10) == [0, 3], "a later cell does not go without the one before it"


def test_a_pass_that_ends_candidates_takes_no_cells_that_nobody_waits_for_behind_them() -> None:
    early, last = cell(4, "a", idle=True), cell(4, "b", hurried=True)
    assert choose([last, early, Offer(3), cell(1, "a", "a", idle=True)], 100) == [0, 2]
    assert choose([early, last, early], 100) == [0, 1], "what is older goes, so that it goes some day"
