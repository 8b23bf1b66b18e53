"""One solve from the door to the answer: admission around the solver. What the routes hold and nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from acemath_core.deadline import Deadline
from acemath_core.errors import InternalError
from acemath_gateway.admission import Admission, Admitted
from acemath_gateway.jobs import Outcome, SolveEvent, SolveJob
from acemath_gateway.keys.door import QuotaDoor

_QUOTA_SECONDS = 2.0  # for a key's quota, of what nobody waits for: others' lines get their turns meanwhile
_LONGEST_WAIT_SECONDS = 600.0  # for places, of what nobody waits for; the door's own bound is at most that


class Runs(Protocol):
    """The solver, as the service needs it."""

    def run(self, job: SolveJob) -> AsyncGenerator[SolveEvent, None]:
        """The job's events, an `Outcome` last; closing it cancels everything behind it."""
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
        async with (
            self._quotas.charged(job.caller, cost(job), job.deadline) as bill,
            self._admission.enter(job.id, cost(job), job.deadline, job.priority) as admitted,
        ):
            bill.see(admitted)
            yield admitted
            async with aclosing(self._solver.run(job)) as run:
                async for event in run:
                    bill.see(event)
                    yield event

    async def solve(self, job: SolveJob) -> Solved:
        """The job's outcome.

        Raises:
            ServiceError: whatever the door or the solver raises.
        """
        queue_seconds, outcome = 0.0, None
        async with aclosing(self.events(job)) as events:
            async for event in events:
                if isinstance(event, Admitted):
                    queue_seconds = event.queue_seconds
                elif isinstance(event, Outcome):
                    outcome = event
        if outcome is None:
            raise InternalError("the solver ended without an outcome; this is a bug")
        return Solved(outcome, queue_seconds)

    async def solve_from_queue(self, job: SolveJob, seconds: float) -> Solved:
        """The outcome of a job that nobody waits for: it has its `seconds` from when it has its places.

        Raises:
            ServiceError: whatever the door or the solver raises.
        """
        asked = Deadline.after(_LONGEST_WAIT_SECONDS + seconds)
        async with (
            self._quotas.charged(job.caller, cost(job), asked, patience_seconds=_QUOTA_SECONDS) as bill,
            self._admission.enter(job.id, cost(job), asked, job.priority) as admitted,
        ):
            bill.see(admitted)
            begun = replace(job, deadline=Deadline.after(seconds), asked=time.monotonic())
            async with aclosing(self._solver.run(begun)) as run:
                async for event in run:
                    bill.see(event)
                    if isinstance(event, Outcome):
                        return Solved(event, admitted.queue_seconds)
        raise InternalError("the solver ended without an outcome; this is a bug")


def cost(job: SolveJob) -> int:
    """Sequences that the job has in flight at once: its largest wave."""
    return max(job.waves)
