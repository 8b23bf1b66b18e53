from __future__ import annotations

from bench.reward.groups import Group, beginning, folded, sequences, useful_tokens


def group(prompt: int, *candidates: tuple[int, ...]) -> Group:
    return Group("p", tuple(range(prompt)), tuple(map(str, candidates)), candidates)


def test_useful_tokens_count_the_prompt_once_and_each_distinct_candidate_once() -> None:
    one = group(10, (1, 2, 3), (4, 5), (1, 2, 3))
    assert one.useful == 10 + 3 + 2
    assert one.with_duplicates == 10 + 3 + 2 + 3
    assert useful_tokens([one, one]) == 30


def test_the_beginning_of_a_set_is_whole_groups_and_one_at_least() -> None:
    groups = [group(10, (1,)), group(10, (2,)), group(10, (3,))]
    assert beginning(groups, 22) == groups[:2]
    assert beginning(groups, 1) == groups[:1]
    assert beginning(groups, 0) == groups


def test_sequences_and_folded_scores_have_one_order() -> None:
    groups = [group(1, (5,), (6,)), group(2, (7,))]
    assert sequences(groups) == [(0, 5), (0, 6), (0, 1, 7)]
    assert folded([1.0, 2.0, 3.0], groups) == [[1.0, 2.0], [3.0]]


def test_a_group_survives_json() -> None:
    one = group(3, (1, 2), (9,))
    assert Group.from_json(one.to_json()) == one


def test_only_takes_candidates_in_the_given_order_and_may_repeat_them() -> None:
    one = group(1, (5,), (6,)).only([1, 1, 0])
    assert one.candidates == ((6,), (6,), (5,))
    assert one.texts == ("(6,)", "(6,)", "(5,)")
