"""A solver on doubles, and a job for it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.wire import Selection
from acemath_gateway.jobs import Outcome, SolveEvent, SolveJob
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.solver import Solver
from doubles.ports import BytePrompts, FixedRelease, ScriptedPolicy, ScriptedScorer, TextJudge


@dataclass
class Bench:
    """A solver on doubles."""

    policy: ScriptedPolicy = field(default_factory=ScriptedPolicy)
    scorer: ScriptedScorer = field(default_factory=ScriptedScorer)
    judge: TextJudge = field(default_factory=TextJudge)
    releases: FixedRelease = field(default_factory=FixedRelease)
    prompts: BytePrompts = field(default_factory=BytePrompts)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    max_scoring: int = 256

    def __post_init__(self) -> None:
        self.solver = Solver(
            policy=self.policy,
            scorer=self.scorer,
            judge=self.judge,
            releases=self.releases,
            encoders=self.prompts,
            metrics=GatewayMetrics.on(self.registry),
            max_scoring=self.max_scoring,
        )

    async def events(self, **job: Any) -> list[SolveEvent]:
        async with aclosing(self.solver.run(a_job(**job))) as run:
            return [event async for event in run]

    async def solve(self, **job: Any) -> Outcome:
        last = (await self.events(**job))[-1]
        assert isinstance(last, Outcome)
        return last

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0


def a_job(**changes: Any) -> SolveJob:
    job = SolveJob(
        id="job-1",
        turns=({"role": "user", "content": "What is 3 * 8?"},),
        n=6,
        temperature=0.7,
        top_p=0.95,
        max_tokens=64,
        seed=0,
        stop=(),
        selection=Selection.BEST_OF_N,
        on_scorer_failure="error",
        deadline=Deadline.after(changes.pop("seconds", 10.0)),
    )
    return replace(job, **changes)
