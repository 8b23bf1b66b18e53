"""One solve from the door to the answer: admission around the solver. What the routes hold and nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from acemath_core.deadline import Deadline
from acemath_gateway.admission import Admission, Admitted
from acemath_gateway.jobs import Outcome, SolveEvent, SolveJob
from acemath_gateway.keys.door import QuotaDoor
from acemath_gateway.keys.quotas import Bill

_QUOTA_SECONDS = 2.0  # for a key's quota, of what nobody waits for: others' lines get their turns meanwhile
_LONGEST_WAIT_SECONDS = 600.0  # for places, of what nobody waits for; the door's own bound is at most that


class Runs(Protocol):
    """The solver, as the service needs it."""

    def run(self, job: SolveJob, spent: Callable[[int], object]) -> AsyncGenerator[SolveEvent, None]:
        """The job's events, an `Outcome` last; closing it cancels everything behind it. `spent` as of `outcome`."""
        ...

    async def outcome(self, job: SolveJob, *, spent: Callable[[int], object]) -> Outcome:
        """The outcome; `spent` gets the generated tokens however it ends; cancelling cancels everything behind it."""
        ...


@dataclass(frozen=True, slots=True)
class Solved:
    """A finished job and how long it waited at the door."""

    outcome: Outcome
    queue_seconds: float


class SolveService:
    """Admits jobs and runs them.

    Args:
        admission: the door.
        solver: does the work.
        quotas: charges it to the keys that ask.
    """

    def __init__(self, admission: Admission, solver: Runs, quotas: QuotaDoor) -> None:
        self._admission, self._solver, self._quotas = admission, solver, quotas

    async def events(self, job: SolveJob) -> AsyncGenerator[Admitted | SolveEvent, None]:
        """`Admitted` once the job has its places, then its events; closing the generator cancels it.

        Raises:
            ServiceError: whatever the door or the solver raises.
        """
        async with self._entered(job, job.deadline) as (bill, admitted):
            yield admitted
            async with aclosing(self._solver.run(job, bill.spend)) as run:
                async for event in run:
                    yield event

    async def solve(self, job: SolveJob) -> Solved:
        """The job's outcome.

        Raises:
            ServiceError: whatever the door or the solver raises.
        """
        async with self._entered(job, job.deadline) as (bill, admitted):
            return Solved(await self._solver.outcome(job, spent=bill.spend), admitted.queue_seconds)

    async def solve_from_queue(self, job: SolveJob, seconds: float) -> Solved:
        """The outcome of a job that nobody waits for: it has its `seconds` from when it has its places.

        Raises:
            ServiceError: whatever the door or the solver raises.
        """
        asked = Deadline.after(_LONGEST_WAIT_SECONDS + seconds)
        async with self._entered(job, asked, patience_seconds=_QUOTA_SECONDS) as (bill, admitted):
            begun = replace(job, deadline=Deadline.after(seconds), asked=time.monotonic())
            return Solved(await self._solver.outcome(begun, spent=bill.spend), admitted.queue_seconds)

    @asynccontextmanager
    async def _entered(
        self, job: SolveJob, asked: Deadline, patience_seconds: float = 0.0
    ) -> AsyncIterator[tuple[Bill, Admitted]]:
        """Within the quotas of who asks, and with places, for the length of the block."""
        async with (
            self._quotas.charged(job.caller, cost(job), asked, patience_seconds=patience_seconds) as bill,
            self._admission.enter(job.id, cost(job), asked, job.priority) as admitted,
        ):
            bill.begin()
            yield bill, admitted


def cost(job: SolveJob) -> int:
    """Sequences that the job has in flight at once: its largest wave."""
    return max(job.waves)
