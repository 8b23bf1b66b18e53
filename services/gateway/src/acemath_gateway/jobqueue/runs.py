"""One line of a job, worked on once: through the same door and solver as a request, at the end of the queue."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from acemath_core.errors import ErrorCode, InternalError, ServiceError
from acemath_core.jobs import LineResult, LineState
from acemath_core.wire import SolveRequest
from acemath_gateway.jobqueue.store import LINE_RUNS, Finished, TakenLine
from acemath_gateway.keys.records import KeyCaller
from acemath_gateway.service import SolveService
from acemath_gateway.solve_wire import Limits, batch_job_of, solution_of
from acemath_web.errors import error_body

_log = logging.getLogger(__name__)

_NOT_STARTED = frozenset(
    {
        ErrorCode.OVERLOADED,
        ErrorCode.NOT_READY,
        ErrorCode.DRAINING,
        ErrorCode.KEYS_UNAVAILABLE,
        ErrorCode.REQUESTS_QUOTA_EXCEEDED,
        ErrorCode.TOKENS_QUOTA_EXCEEDED,
        ErrorCode.SEQUENCES_QUOTA_EXCEEDED,
    }
)
"""Refusals before any work: nothing was run, and the same line may be taken up again later."""
_MAY_PASS = frozenset(
    {
        ErrorCode.POLICY_UNAVAILABLE,
        ErrorCode.REWARD_UNAVAILABLE,
        ErrorCode.REWARD_OVERLOADED,
        ErrorCode.NO_USABLE_CANDIDATE,
    }
)
"""Failures of ours that another run may not meet."""


@dataclass(frozen=True, slots=True)
class PutBack:
    """The line is to be taken up again; `counts` says whether this was one of its runs."""

    counts: bool


class LineRunner:
    """Works on lines.

    Args:
        service: the door and the solver.
        limits: what is allowed beyond the schema.
        caller: who has the key with an id (`KeyBook.with_id`); lines are charged to the quotas of their job's key.
    """

    def __init__(
        self, service: SolveService, limits: Limits, caller: Callable[[str], Awaitable[KeyCaller | None]]
    ) -> None:
        self._service, self._limits, self._caller = service, limits, caller

    async def run(self, line: TakenLine) -> Finished | PutBack:
        """The line's result, or why there is none yet. Raises nothing; cancelling it cancels the work."""
        if line.runs > LINE_RUNS:
            return failed(line, _lost())
        try:
            return await self._solve(line)
        except ServiceError as error:
            if error.code in _NOT_STARTED:
                return PutBack(counts=False)
            return PutBack(counts=True) if error.code in _MAY_PASS and line.runs < LINE_RUNS else failed(line, error)
        except Exception as error:
            _log.error("unhandled %s in a line of a job", type(error).__name__, exc_info=error)
            return failed(line, InternalError("an internal error; report it with the job's id and the line"))

    async def _solve(self, line: TakenLine) -> Finished:
        request = SolveRequest.model_validate_json(line.body)
        job, seconds = batch_job_of(request, f"{line.job}-{line.line}", self._limits)
        job = replace(job, caller=await self._caller(line.owner))
        solved = await self._service.solve_from_queue(job, seconds)
        solution = solution_of(solved.outcome, detail=request.candidates, queue_seconds=solved.queue_seconds)
        row = LineResult(line=line.line, state=LineState.SUCCEEDED, runs=line.runs, solution=solution)
        return Finished(
            LineState.SUCCEEDED,
            row.model_dump_json(exclude={"error"}).encode(),
            solution.usage.prompt_tokens,
            solution.usage.completion_tokens,
        )


def failed(line: TakenLine, error: ServiceError) -> Finished:
    """The result of a line that failed."""
    row = LineResult(
        line=line.line, state=LineState.FAILED, runs=min(line.runs, LINE_RUNS), error=error_body(error).error
    )
    return Finished(LineState.FAILED, row.model_dump_json(exclude={"solution"}).encode())


def results_full(line: TakenLine) -> Finished:
    """The result of a line for whose solution there is no room."""
    message = (
        "the job's results have reached their largest size, or all jobs' together what can be kept; ask for fewer "
        "candidates, for several jobs, and delete those that you need no more"
    )
    return failed(line, ServiceError(message, code=ErrorCode.RESULTS_FULL))


def _lost() -> ServiceError:
    return ServiceError(
        f"the line was taken up {LINE_RUNS} times, and each time its worker was gone before it had a result",
        code=ErrorCode.WORKER_LOST,
    )
