"""OpenTelemetry spans of a job, in the names of its semantic conventions for generative AI; sent as OTLP over HTTP.

    chat acemath             server, child of the caller's `traceparent`: the job, its parameters, tokens, stop reason
    ├─ chat <policy>         client, one for each wave; vLLM gets its `traceparent`
    ├─ candidate             one for each candidate, from its wave's begin to its score
    │  └─ score <reward>     client; the reward service gets its `traceparent`
    └─ …

A candidate's score is the event `gen_ai.evaluation.result` of its span; one that was stopped before its end has
`acemath.candidate.rejected` with its partial score instead, and is no error. One call for several candidates carries
the `traceparent` of the first. No span holds a prompt, a solution, an answer, a stop text, a key, or an error's words.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acemath_core.errors import ServiceError
from acemath_gateway.jobs import Outcome, SolveJob
from acemath_gateway.ports import CandidateFailed, CandidateFinished, ReleaseTarget, Sampling
from acemath_gateway.trace_context import carrying, trace_headers
from acemath_gateway.tracing import JobTrace

_W3C = TraceContextTextMapPropagator()
_EXPORT_SECONDS = 2.0  # one batch; what a collector does not take by then is lost
_LAST_SECONDS = 3.0  # for what is left when the gateway stops
Attributes = Mapping[str, str | int | float | list[str]]


@asynccontextmanager
async def open_traces(endpoint: str, *, ratio: float, instance: str) -> AsyncIterator[OtelTraces]:
    """Traces that a thread sends to a collector, 2048 waiting spans at most; a collector that is away costs only them.

    Args:
        endpoint: where it takes OTLP over HTTP, e.g. `http://127.0.0.1:4318/v1/traces`.
        ratio: share of the traces begun here that are kept; a caller's own say so themselves.
        instance: name of this replica.
    """
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource.create({"service.name": "acemath-gateway", "service.instance.id": instance}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=2048))
    try:
        yield OtelTraces(provider)
    finally:
        last = asyncio.ensure_future(asyncio.to_thread(provider.shutdown))
        if not (await asyncio.wait({last}, timeout=_LAST_SECONDS))[0]:
            exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its retries, so that the thread ends too
        await last


class OtelTraces:
    """`Traces` as spans of a provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("acemath_gateway")

    @contextmanager
    def job(self, job: SolveJob) -> Iterator[JobTrace]:
        """See `Traces`."""
        parent = _W3C.extract(dict(trace_headers()))
        span = self._tracer.start_span("chat acemath", parent, SpanKind.SERVER, _of_job(job))
        trace = _OtelJob(self._tracer, span)
        with _until_the_end(span), carrying(_headers(span)):
            try:
                yield trace
            finally:
                trace.close()


class _OtelJob:
    """`JobTrace` as spans."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span, self._context = tracer, span, set_span_in_context(span, Context())
        self._open: dict[int, Span] = {}
        self._finished: set[int] = set()

    @contextmanager
    def wave(self, target: ReleaseTarget, start: int, sampling: Sampling) -> Iterator[None]:
        call = self._client(f"chat {target.policy}", self._context, _of_wave(target, start, sampling))
        for index in range(start, start + sampling.n):
            here = {"acemath.candidate.index": index}
            self._open[index] = self._tracer.start_span("candidate", self._context, attributes=here)
        with _until_the_end(call), carrying(_headers(call)):
            yield

    def ended(self, event: CandidateFinished | CandidateFailed) -> None:
        span = self._open.get(event.index)
        if span is None:
            return
        if isinstance(event, CandidateFailed):
            _failed(span, event.reason)
            self._end(event.index)
            return
        self._finished.add(event.index)
        span.set_attribute("gen_ai.response.finish_reasons", [event.finish_reason.value])
        span.set_attribute("gen_ai.usage.output_tokens", len(event.token_ids))
        span.add_event("acemath.candidate.finished")

    @contextmanager
    def scoring(self, target: ReleaseTarget, index: int) -> Iterator[None]:
        candidate = self._open.get(index, self._span)
        context = set_span_in_context(candidate, Context())
        call = self._client(f"score {target.reward}", context, _of_call("score", "acemath", target.reward))
        try:
            with _until_the_end(call), carrying(_headers(call)):
                yield
        except BaseException as error:
            _failed(candidate, _type_of(error))
            self._end(index)
            raise

    def scored(self, index: int, score: float) -> None:
        span = self._open.get(index)
        if span is not None:
            result: Attributes = {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": score}
            span.add_event("gen_ai.evaluation.result", result)
        self._end(index)

    def rejected(self, index: int, partial_score: float) -> None:
        span = self._open.get(index)
        if span is not None:
            span.add_event("acemath.candidate.rejected", {"acemath.candidate.partial_score": partial_score})
        self._end(index)

    def chosen(self, outcome: Outcome) -> None:
        self._span.set_attributes(_of_outcome(outcome))

    def close(self) -> None:
        """End what is still open: candidates that nobody waits for any more."""
        for index, span in list(self._open.items()):
            if index not in self._finished:
                _failed(span, "not_finished")
            self._end(index)

    def _client(self, name: str, context: Context, attributes: Attributes) -> Span:
        return self._tracer.start_span(name, context, SpanKind.CLIENT, attributes)

    def _end(self, index: int) -> None:
        span = self._open.pop(index, None)
        if span is not None:
            span.end()


def _headers(span: Span) -> dict[str, str]:
    headers: dict[str, str] = {}
    _W3C.inject(headers, set_span_in_context(span, Context()))
    return headers


@contextmanager
def _until_the_end(span: Span) -> Iterator[None]:
    """End the span with the block; of an error it keeps the kind, since messages may repeat what somebody wrote."""
    try:
        yield
    except BaseException as error:
        _failed(span, _type_of(error))
        raise
    finally:
        span.end()


def _failed(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _type_of(error: BaseException) -> str:
    if isinstance(error, ServiceError):
        return error.code.value
    return "cancelled" if isinstance(error, asyncio.CancelledError | GeneratorExit) else type(error).__name__


def _of_call(operation: str, provider: str, model: str) -> dict[str, str]:
    names = {"operation.name": operation, "provider.name": provider, "request.model": model}
    return {f"gen_ai.{name}": value for name, value in names.items()}


def _of_job(job: SolveJob) -> Attributes:
    return {
        **_of_call("chat", "acemath", "acemath"),
        "gen_ai.request.choice.count": job.n,
        "gen_ai.request.max_tokens": job.max_tokens,
        "gen_ai.request.temperature": job.temperature,
        "gen_ai.request.top_p": job.top_p,
        "gen_ai.request.seed": job.seed,
        "gen_ai.response.id": job.id,
        "acemath.selection": job.selection.value,
        "acemath.priority": job.priority.value,
    }


def _of_wave(target: ReleaseTarget, start: int, sampling: Sampling) -> Attributes:
    return {
        **_of_call("chat", "vllm", target.policy),
        "gen_ai.request.choice.count": sampling.n,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.seed": sampling.seed,
        "acemath.wave.start": start,
    }


def _of_outcome(outcome: Outcome) -> Attributes:
    degraded = {"acemath.degraded_reason": outcome.degraded_reason.value} if outcome.degraded_reason else {}
    return {
        **degraded,
        "gen_ai.response.model": outcome.target.policy,
        "gen_ai.response.finish_reasons": [outcome.best.finish_reason.value],
        "gen_ai.usage.input_tokens": outcome.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.completion_tokens,
        "acemath.release": outcome.target.release,
        "acemath.reward": outcome.target.reward,
        "acemath.stop_reason": outcome.stop_reason.value,
        "acemath.candidates.generated": outcome.n_generated,
        "acemath.candidates.scored": outcome.n_scored,
        "acemath.candidates.rejected": outcome.n_rejected,
    }
