"""Spans that are kept where a test reads them, and doubles that note under which they were called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.wire import Selection
from acemath_gateway.adapters.otel import OtelTraces
from acemath_gateway.jobs import SolveEvent, SolveJob
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.solver import Solver
from acemath_gateway.trace_context import trace_headers
from doubles.ports import BytePrompts, FixedRelease, ScriptedPolicy, ScriptedScorer, TextJudge

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Traced:
    """A solver on doubles that write down with which headers they were called, and its spans."""

    policy: ScriptedPolicy = field(default_factory=lambda: Recording())
    scorer: ScriptedScorer = field(default_factory=lambda: RecordingScorer())
    kept: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def solver(self) -> Solver:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.kept))
        return Solver(
            policy=self.policy,
            scorer=self.scorer,
            judge=TextJudge(),
            releases=FixedRelease(),
            encoders=BytePrompts(),
            metrics=GatewayMetrics.on(CollectorRegistry()),
            traces=OtelTraces(provider),
        )

    async def solve(self, *, seconds: float = 20.0, **changes: Any) -> list[SolveEvent]:
        job: dict[str, Any] = {
            "id": "job-1",
            "turns": ({"role": "user", "content": "swordfish: 3 * 8?"},),
            "n": 3,
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 64,
            "seed": 5,
            "stop": ("STOPHERE",),
            "selection": Selection.BEST_OF_N,
            "on_scorer_failure": "error",
            "deadline": Deadline.after(seconds),
        }
        async with aclosing(self.solver().run(SolveJob(**(job | changes)))) as run:
            return [event async for event in run]

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        found = [span for span in self.kept.get_finished_spans() if name is None or span.name == name]
        return sorted(found, key=lambda span: int(str((span.attributes or {}).get("acemath.candidate.index", 0))))


@dataclass
class Recording(ScriptedPolicy):
    carried: list[str] = field(default_factory=list)

    async def generate(self, *asked: Any) -> Any:
        self.carried.append(trace_headers().get("traceparent", ""))
        async with aclosing(super().generate(*asked)) as events:
            async for event in events:
                yield event


@dataclass
class RecordingScorer(ScriptedScorer):
    carried: list[str] = field(default_factory=list)

    async def score(self, *asked: Any) -> float:
        self.carried.append(trace_headers().get("traceparent", ""))
        return await super().score(*asked)


def header_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def everything_in(span: ReadableSpan) -> Iterator[str]:
    yield span.name
    yield str(dict(span.attributes or {}))
    yield str(span.status.description)
    for event in span.events:
        yield event.name + str(dict(event.attributes or {}))
