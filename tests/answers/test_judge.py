from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_answers import AnswerJudge, Verdict, WorkerLimits
from acemath_answers.partition import Partition, Question

HANGS = "9^{9^{9^9}}"
PATIENCE_S = 60.0


def test_classes_in_first_seen_order(judge: AnswerJudge) -> None:
    answers = ["1/2", "0.5", None, r"\frac{1}{2}", "x+1", "1+x", "5", "5 apples", r"\sqrt{4}", "2", None]
    assert judge.classes(answers, deadline_s=PATIENCE_S) == [0, 0, None, 0, 1, 1, 2, 2, 3, 3, None]


def test_classes_of_nothing(judge: AnswerJudge) -> None:
    assert judge.classes([]) == []
    assert judge.classes([None, None]) == [None, None]


async def test_async_gives_the_same(judge: AnswerJudge) -> None:
    answers = ["x+1", "2", None, "1+x", r"\frac{4}{2}"]
    assert await judge.aclasses(answers, deadline_s=PATIENCE_S) == [0, 1, None, 0, 1]
    assert await judge.aequivalent("x+1", "1+x", deadline_s=PATIENCE_S) is Verdict.EQUAL
    assert await judge.aequivalent("5", "5.0") is Verdict.EQUAL


async def test_the_event_loop_goes_on_while_a_worker_hangs(hasty_judge: AnswerJudge) -> None:
    hanging = asyncio.create_task(hasty_judge.aclasses([HANGS, "x"], deadline_s=8))
    ticks = 0
    while not hanging.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert await hanging == [0, 1]
    assert ticks > 10  # in the second that the comparison is given


def test_what_is_undecided_at_the_deadline_is_its_own_class(judge: AnswerJudge) -> None:
    start = time.monotonic()
    assert judge.classes([HANGS, "x+1", "5", "5.0", HANGS], deadline_s=0.5)[2:] == [2, 2, 0]
    assert time.monotonic() - start < 15  # sooner than the time-out of a comparison
    assert judge.equivalent(HANGS, "5", deadline_s=0.2) in (Verdict.TIMEOUT, Verdict.OVERLOADED)


async def test_a_cancelled_call_gives_its_places_back(hasty_judge: AnswerJudge) -> None:
    calls = [asyncio.create_task(hasty_judge.aclasses([HANGS, "x+1"], deadline_s=60)) for _ in range(8)]
    await asyncio.sleep(0.1)
    for call in calls:
        call.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True))
    verdict = await hasty_judge.aequivalent("x+3", "3+x", deadline_s=PATIENCE_S)
    assert verdict in (Verdict.EQUAL, Verdict.TIMEOUT)  # it had its turn; a busy machine may need more than a second


async def test_async_context_manager() -> None:
    async with AnswerJudge(WorkerLimits(workers=1, timeout_s=20)) as judge:
        assert await judge.aequivalent("x+1", "1+x", deadline_s=PATIENCE_S) is Verdict.EQUAL
    assert judge.process_ids() == []
    with pytest.raises(RuntimeError, match="started once"):
        judge.start()


def _drive(partition: Partition, verdict_of: dict[tuple[int, int], Verdict]) -> list[Question]:
    asked = []
    while questions := partition.next_questions():
        for question in reversed(questions):  # the order in which workers answer must not matter
            asked.append(question)
            second = question.first if question.second is None else question.second
            partition.record(question, verdict_of.get((question.first, second), Verdict.EQUAL))
    return asked


def test_plain_numbers_ask_nothing() -> None:
    partition = Partition(["5", "5.0", "7", None, "7"])
    assert partition.next_questions() == []
    assert partition.classes() == [0, 0, 1, None, 1]


def test_an_answer_is_compared_with_representatives_only() -> None:
    partition = Partition(["x+1", "y+1", "z+1"])
    asked = _drive(partition, {(0, 1): Verdict.EQUAL, (0, 2): Verdict.DIFFERENT})
    assert Question(1, 2) not in asked
    assert partition.classes() == [0, 0, 1]


def test_an_answer_that_spends_time_outs_is_left_alone() -> None:
    partition = Partition(["x+1", "y+1", "z+1", "w+1"])
    asked = _drive(
        partition, {(1, 1): Verdict.TIMEOUT, (0, 2): Verdict.TIMEOUT, (0, 3): Verdict.EQUAL, (2, 3): Verdict.EQUAL}
    )
    assert not {Question(0, 1), Question(1, 2), Question(1, 3)} & set(asked)
    assert partition.classes() == [0, 1, 0, 0]  # 3 equals both 0 and 2; nothing said that these differ


def test_a_slow_first_answer_leaves_the_majority_whole() -> None:
    partition = Partition(SURDS[:4])
    asked = _drive(partition, {(0, i): Verdict.TIMEOUT for i in (1, 2, 3)})
    assert partition.classes() == [0, 1, 1, 1]
    assert Question(0, 3) not in asked  # two time-outs were enough


def test_a_recorded_equal_outlives_the_strikes_of_its_answers() -> None:
    partition = Partition(SURDS[:4])
    _drive(partition, {(0, 2): Verdict.TIMEOUT, (0, 3): Verdict.TIMEOUT})
    assert partition.classes() == [0, 0, 0, 0]


SURDS = [rf"\sqrt{{{2 * n * n}}}/{n}" for n in range(1, 9)]
"""Different spellings without a cheap reading."""
UNDECIDED = st.sampled_from([Verdict.TIMEOUT, Verdict.FAILED])


@given(st.lists(st.integers(0, 2), min_size=2, max_size=8), st.data())
def test_one_slow_answer_breaks_up_no_class(truth: list[int], data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, len(truth) - 1))
    verdicts = {}
    for i in range(len(truth)):
        for j in range(i + 1, len(truth)):
            true = Verdict.EQUAL if truth[i] == truth[j] else Verdict.DIFFERENT
            verdicts[i, j] = data.draw(st.just(true) | UNDECIDED) if slow in (i, j) else true
    partition = Partition(SURDS[: len(truth)])
    asked = _drive(partition, verdicts)
    classes = partition.classes()
    others = [i for i in range(len(truth)) if i != slow]
    assert all((classes[i] == classes[j]) == (truth[i] == truth[j]) for i in others for j in others)
    pairs = [(q.first, q.second) for q in asked if q.second is not None]
    assert len(set(asked)) == len(asked)
    assert len([pair for pair in pairs if verdicts[pair] not in (Verdict.EQUAL, Verdict.DIFFERENT)]) <= 2


@given(st.integers(2, 8), st.data())
def test_time_outs_are_few_and_no_equal_is_dropped(size: int, data: st.DataObject) -> None:
    partition = Partition(SURDS[:size])
    kinds = st.sampled_from([Verdict.EQUAL, Verdict.TIMEOUT, Verdict.FAILED])
    verdicts = {(i, j): data.draw(kinds) for i in range(size) for j in range(i + 1, size)}
    asked = [(q.first, q.second) for q in _drive(partition, verdicts) if q.second is not None]
    classes = partition.classes()
    assert all(classes[i] == classes[j] for i, j in asked if verdicts[i, j] is Verdict.EQUAL)
    assert sum(verdicts[pair] is not Verdict.EQUAL for pair in asked) <= size


@given(
    st.lists(st.one_of(st.none(), st.sampled_from(["x+1", "y+1", r"\pi", "5", "5.0", "7", "50%", "0.5"])), max_size=8),
    st.data(),
)
def test_any_verdicts_give_a_partition(answers: list[str | None], data: st.DataObject) -> None:
    partition = Partition(answers)
    while questions := partition.next_questions():
        for question in questions:
            partition.record(question, data.draw(st.sampled_from(Verdict)))
    classes = partition.classes()
    assert [c is None for c in classes] == [a is None for a in answers]
    seen = [c for c in dict.fromkeys(classes) if c is not None]
    assert seen == list(range(len(seen)))
    spelled: dict[str, int | None] = {}
    for answer, number in zip(answers, classes, strict=True):
        if answer is not None:
            assert spelled.setdefault(answer, number) == number
