"""From the board to the outcome: how to choose, among what, and what to call it when something is missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_core.wire import DegradedReason, FinishReason, Selection, StopReason
from acemath_gateway.board import Board
from acemath_gateway.jobs import Outcome, SolvedItem, SolveJob
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.selection import Overturns, rivals, select
from acemath_gateway.votes import Comparer, undecided

_JUDGE_SECONDS = 10.0
_DOUBT_SECONDS = 3.0
_JUDGE_SHARE = 0.9  # of what is left: the answer must still be sent


class Judge(Comparer, Protocol):
    """Says which answers are the same."""

    async def aclasses(self, answers: Sequence[str | None], *, deadline_s: float) -> list[int | None]:
        """The equivalence class of each answer, None for None, within `deadline_s` seconds."""
        ...


async def choose(
    job: SolveJob, target: ReleaseTarget, prompt_tokens: int, board: Board, judge: Judge, temperature: float
) -> Outcome:
    """The outcome of what is on the board; `temperature` is of weighted votes.

    Raises:
        DeadlineExceeded: the deadline came before anything could be chosen from.
        InvalidRequest: (`context_length_exceeded`) the problem is too long for the reward model.
        Unavailable: (`policy_unavailable`, `no_usable_candidate`) there is nothing to choose from.
    """
    started = time.monotonic()
    selection = _selection(job, board)
    classes = {} if selection is Selection.BEST_OF_N else await classes_of(board, job.deadline, judge)
    items = board.items(classes)
    chosen = select(selection, items, temperature)
    overturns = rivals(selection, items, chosen.answer_class, temperature)
    doubts = await _doubts(items, chosen, overturns, job.deadline, judge)
    return Outcome(
        target=target,
        candidates=items,
        chosen=items.index(chosen),
        selection=selection,
        stop_reason=_stop_reason(job, board),
        degraded_reason=_degraded(board, chosen, doubts),
        undecided=doubts,
        prompt_tokens=prompt_tokens,
        discarded_tokens=board.discarded_tokens,
        n_requested=job.n,
        n_generated=board.finished,
        n_scored=board.scored,
        n_rejected=board.rejected,
        timings=board.timings(time.monotonic() - started),
    )


def may_vote(job: SolveJob) -> bool:
    """Whether an answer may be chosen without the scorer."""
    return job.selection is Selection.MAJORITY or job.on_scorer_failure == "majority"


def _selection(job: SolveJob, board: Board) -> Selection:
    """How to choose among what there is; raises when there is nothing to choose from."""
    if not board.finished and board.cut:
        raise _too_late("finished")
    if not board.finished:
        raise Unavailable(
            "the policy finished no candidate; try again shortly", code=ErrorCode.POLICY_UNAVAILABLE, retry_after=2.0
        )
    if board.scored:
        return job.selection
    if may_vote(job):
        return Selection.MAJORITY
    if board.cut:
        raise _too_late("scored")
    if board.misses:
        raise board.misses[-1]
    raise _unscorable(board)


async def classes_of(board: Board, deadline: Deadline, judge: Judge) -> dict[int, int | None]:
    """Index of each candidate that has ended → class of its answer; what was not compared in time stays apart."""
    answers = board.answers()
    seconds = min(_JUDGE_SECONDS, _JUDGE_SHARE * deadline.remaining())
    found = await judge.aclasses(list(answers.values()), deadline_s=seconds)
    return dict(zip(answers, found, strict=True))


async def _doubts(
    items: Sequence[SolvedItem], chosen: SolvedItem, overturns: Overturns, deadline: Deadline, judge: Judge
) -> int:
    """Comparisons without a verdict that could have changed the vote."""
    if chosen.answer_class is None:
        return 0
    spelling = {i.answer_class: i.answer for i in reversed(items) if i.answer_class is not None}
    votes = Counter(item.answer_class for item in items)
    losers = sorted(spelling.keys() - {chosen.answer_class}, key=lambda one: (-votes[one], one))
    seconds = min(_DOUBT_SECONDS, _JUDGE_SHARE * deadline.remaining())
    return await undecided(judge, {one: spelling[one] or "" for one in losers}, overturns, deadline_s=seconds)


def _stop_reason(job: SolveJob, board: Board) -> StopReason:
    if board.settled:
        return board.settled
    if board.cut:
        return StopReason.DEADLINE
    if board.finished < board.wanted - board.rejected:
        return StopReason.POLICY_FAILED
    return StopReason.GREEDY if job.temperature == 0 else StopReason.COMPLETE


def _degraded(board: Board, chosen: SolvedItem, doubts: int) -> DegradedReason | None:
    """The gravest of what is missing."""
    if chosen.finish_reason is FinishReason.LENGTH:
        return DegradedReason.TRUNCATED
    if not board.scored:
        return DegradedReason.SCORER_FAILED
    if doubts:
        return DegradedReason.UNDECIDED_ANSWERS
    if board.finished < board.wanted - board.rejected and not board.settled:
        return DegradedReason.FEWER_CANDIDATES
    return DegradedReason.PARTLY_SCORED if board.scored < board.finished else None


def _unscorable(board: Board) -> InvalidRequest | Unavailable:
    """What it is called when the scorer refused every candidate: the caller's, when all of it is too long for it."""
    if all(error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED for error in board.refusals):
        return InvalidRequest(
            "with each of its solutions the problem is too long for the reward model; shorten it or lower max_tokens",
            param="messages",
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        )
    return Unavailable(
        "the reward model can score none of the candidates; other candidates may do better",
        code=ErrorCode.NO_USABLE_CANDIDATE,
        retry_after=2.0,
    )


def _too_late(what: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the deadline passed before any candidate was {what}; send a larger deadline_seconds or fewer candidates",
        should_retry=False,
    )
