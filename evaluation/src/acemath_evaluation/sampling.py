"""Sample candidates for problems through a running gateway into a journal; a killed run goes on where it was."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from acemath_core.wire import MAX_SEED, Solution, SolveRequest
from acemath_evaluation.http_calls import CallError, Service, post, run_workers
from acemath_evaluation.journal import Journal
from acemath_evaluation.rows import Problem

_FAILURES_IN_A_ROW = 5

Progress = Callable[[], None]


class SamplingStopped(Exception):
    """The run cannot go on as it is; what was sampled is in the journal."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What decides the draws, and therefore goes into the journal's digest. `seed` is the run's; see `seed_of`."""

    n: int = 8
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 1024
    seed: int = 0

    def config(self) -> dict[str, Any]:
        """Return the options as the journal keeps them."""
        return {"kind": "draws", **asdict(self)}


def seed_of(problem_id: str, run_seed: int) -> int:
    """Return the seed of a problem's first candidate: fixed by its id and the run's seed, spread over the range."""
    digest = hashlib.sha256(f"{run_seed}:{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % MAX_SEED


async def sample(
    problems: Sequence[Problem],
    journal: Journal,
    gateway: Service,
    options: SamplingOptions,
    *,
    concurrency: int,
    progress: Progress,
) -> dict[str, str]:
    """Solve every problem that the journal does not hold yet; return those that failed, with the reason.

    The journal notes first which problems are asked for, and every failure, so that a report can count them.
    `progress` is called once for each problem that was appended.

    Raises:
        SamplingStopped: the release changed under the run, or several problems in a row failed.
    """
    journal.note_asked({problem.id: problem.cluster for problem in problems})
    run = _Run(journal, gateway, options, deque(p for p in problems if p.id not in journal.records), progress)
    async with gateway.client(concurrency) as client:
        await run_workers(lambda: run.work(client), concurrency)
    return run.failed


class _Run:
    """The state that the concurrent workers of one run share."""

    def __init__(
        self,
        journal: Journal,
        gateway: Service,
        options: SamplingOptions,
        left: deque[Problem],
        progress: Progress,
    ) -> None:
        self.failed: dict[str, str] = {}
        self._journal = journal
        self._gateway = gateway
        self._options = options
        self._left = left
        self._progress = progress
        self._failures_in_a_row = 0
        self._release = next((record["release"] for record in journal.records.values()), None)

    async def work(self, client: httpx.AsyncClient) -> None:
        while self._left:
            problem = self._left.popleft()
            try:
                document = await post(client, "/v1/solve", self._body(problem), self._gateway.patience_seconds)
                self._keep(problem, Solution.model_validate(document))
            except CallError as error:
                self._note_failure(problem, error)

    def _body(self, problem: Problem) -> dict[str, Any]:
        request = SolveRequest(
            problem=problem.problem,
            n=self._options.n,
            temperature=self._options.temperature,
            top_p=self._options.top_p,
            max_tokens=self._options.max_tokens,
            seed=seed_of(problem.id, self._options.seed),
            deadline_seconds=min(self._gateway.patience_seconds, 600.0),  # what a gateway gives by default
            candidates="full",
        )
        return request.model_dump(mode="json", exclude_none=True)

    def _keep(self, problem: Problem, solution: Solution) -> None:
        if self._release is not None and solution.release != self._release:
            raise SamplingStopped(
                f"the gateway now serves release {solution.release}, the run began with {self._release}: "
                "promote that one again, or begin a new run in another directory"
            )
        self._release = solution.release
        self._failures_in_a_row = 0
        self._journal.append(_record(problem, solution))
        self._progress()

    def _note_failure(self, problem: Problem, error: CallError) -> None:
        reason = str(error)
        self.failed[problem.id] = reason
        self._journal.note_failure(problem.id, error.code, reason)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            raise SamplingStopped(f"{_FAILURES_IN_A_ROW} problems in a row failed; the last: {reason}") from error


def _record(problem: Problem, solution: Solution) -> dict[str, Any]:
    candidates = sorted(solution.candidates, key=lambda candidate: candidate.index)
    return {
        "id": problem.id,
        "problem": problem.problem,
        "answer": problem.answer,
        "cluster": problem.cluster,
        "release": solution.release,
        "models": solution.models.model_dump(),
        "stop_reason": solution.stop_reason,
        "degraded_reason": solution.degraded_reason,
        "seconds": solution.timings.total_seconds,
        "candidates": [candidate.model_dump(mode="json") for candidate in candidates],
    }
