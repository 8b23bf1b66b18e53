"""What a trace says of a job, what it never says, and that a caller's trace goes on to policy and reward."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway.solver_bench import a_job
from gateway.traced import PARENT, Recording, RecordingScorer, Traced, everything_in, header_of, id_of, parent_of
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import acemath_gateway
from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, Unavailable
from acemath_core.settings import SettingsError
from acemath_core.wire import Selection
from acemath_gateway import settings as gateway_settings
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.otel import OtelTraces, open_traces
from acemath_gateway.compose import _traces
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.settings import GatewaySettings
from acemath_gateway.trace_context import TraceContextMiddleware, carrying, trace_headers
from acemath_gateway.tracing import NoTraces
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client
from doubles.ports import TARGET
from doubles.servers import served, unused_url

SECRETS = ("swordfish", "boxed", "times", "answer", "STOPHERE")


async def test_a_job_has_a_span_for_each_candidate_with_its_score() -> None:
    traced = Traced()
    with carrying({"traceparent": PARENT}):
        await traced.solve()
    (job,) = traced.spans("chat acemath")
    (wave,) = traced.spans(f"chat {TARGET.policy}")
    candidates, scores = traced.spans("candidate"), traced.spans(f"score {TARGET.reward}")
    assert (len(candidates), len(scores), len(traced.spans())) == (3, 3, 8)
    assert header_of(job)[:36] == PARENT[:36] and f"{parent_of(job):016x}" == PARENT.split("-")[2]
    assert (job.kind, wave.kind, scores[0].kind) == (SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CLIENT)
    assert {parent_of(span) for span in [wave, *candidates]} == {id_of(job)}
    assert {parent_of(span) for span in scores} == {id_of(span) for span in candidates}
    for index, span in enumerate(candidates):
        assert span.attributes is not None
        assert span.attributes["acemath.candidate.index"] == index
        assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
        assert [event.name for event in span.events] == ["acemath.candidate.finished", "gen_ai.evaluation.result"]
        assert isinstance((span.events[1].attributes or {})["gen_ai.evaluation.score.value"], float)
    told = job.attributes or {}
    assert (told["gen_ai.request.choice.count"], told["gen_ai.request.seed"], told["acemath.stop_reason"]) == (
        3,
        5,
        "complete",
    )
    assert told["gen_ai.usage.output_tokens"] == sum(
        int(str((one.attributes or {})["gen_ai.usage.output_tokens"])) for one in candidates
    )
    assert {span.status.status_code for span in traced.spans()} == {StatusCode.UNSET}


async def test_policy_and_reward_get_the_span_that_calls_them() -> None:
    traced = Traced()
    await traced.solve()
    assert isinstance(traced.policy, Recording) and isinstance(traced.scorer, RecordingScorer)
    assert traced.policy.carried == [header_of(one) for one in traced.spans(f"chat {TARGET.policy}")]
    assert sorted(traced.scorer.carried) == sorted(header_of(one) for one in traced.spans(f"score {TARGET.reward}"))
    assert trace_headers() == {}


async def test_each_wave_has_its_span() -> None:
    traced = Traced(policy=Recording(script=[f"so \\boxed{{{i}}}" for i in range(8)]))
    await traced.solve(n=8, adaptive=True)
    waves = traced.spans(f"chat {TARGET.policy}")
    assert [(one.attributes or {})["acemath.wave.start"] for one in waves] == [0, 4, 6]
    assert [(one.attributes or {})["acemath.candidate.index"] for one in traced.spans("candidate")] == list(range(8))


async def test_a_stopped_candidate_ends_with_its_partial_score_and_is_no_error() -> None:
    worth = RecordingScorer(rule=lambda text: float(text.split()[1]))
    script = [f"worth {i} {'so ' * 60}\\boxed{{{i}}}" for i in range(4)]
    traced = Traced(policy=Recording(script=script, token_seconds=0.002), scorer=worth)
    await traced.solve(n=4, seed=0, early_reject=True)
    names = [[event.name for event in span.events] for span in traced.spans("candidate")]
    stopped, ended = ["acemath.candidate.rejected"], ["acemath.candidate.finished", "gen_ai.evaluation.result"]
    assert names == [stopped, stopped, ended, ended]
    assert [dict(s.events[0].attributes or {}) for s in traced.spans("candidate")[:2]] == [
        {"acemath.candidate.partial_score": float(i)} for i in range(2)
    ]
    assert {span.status.status_code for span in traced.spans()} == {StatusCode.UNSET}
    assert (traced.spans("chat acemath")[0].attributes or {})["acemath.candidates.rejected"] == 2


async def test_a_caller_that_leaves_ends_every_span() -> None:
    traced = Traced(policy=Recording(hang_after=1))
    working = asyncio.create_task(traced.solve())
    async with asyncio.timeout(5):
        while not getattr(traced.policy, "running", 0):  # noqa: ASYNC110 - the double sets no event
            await asyncio.sleep(0.001)
    working.cancel()
    await asyncio.wait({working})
    kinds = {span.name: (span.attributes or {})["error.type"] for span in traced.spans()}
    assert kinds == {
        "chat acemath": "cancelled",
        f"chat {TARGET.policy}": "cancelled",
        "candidate": "not_finished",
    }


async def test_failures_say_what_kind_and_repeat_nobodys_words() -> None:
    away = Unavailable("swordfish is away", code=ErrorCode.REWARD_UNAVAILABLE)
    traced = Traced(scorer=RecordingScorer(error=away), policy=Recording(fail={1: "repetition"}))
    with pytest.raises(Unavailable):
        await traced.solve()
    failed = {(span.attributes or {}).get("error.type") for span in traced.spans("candidate")}
    assert failed == {"reward_unavailable", "repetition"}
    (job,) = traced.spans("chat acemath")
    assert (job.attributes or {})["error.type"] == "reward_unavailable" and not job.status.is_ok
    said = "".join(text for span in traced.spans() for text in everything_in(span))
    assert "swordfish" not in said


async def test_no_span_holds_what_somebody_wrote() -> None:
    traced = Traced()
    await traced.solve()
    await traced.solve(selection=Selection.MAJORITY)
    said = [text for span in traced.spans() for text in everything_in(span)]
    assert not [text for text in said if any(secret in text for secret in SECRETS)]
    allowed = {"gen_ai", "acemath", "error"}
    assert {name.partition(".")[0] for span in traced.spans() for name in span.attributes or {}} <= allowed


# ------------------------------------------------------------------------------------------------ on its way through


@asynccontextmanager
async def seen_by(upstream: Upstream) -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
    seen: list[dict[str, str]] = []

    async def answer(request: Request) -> Response:
        seen.append({name: request.headers[name] for name in ("traceparent", "tracestate") if name in request.headers})
        return Response("{}")

    async with served(Starlette(routes=[Route("/x", answer, methods=["POST"])])) as url:
        yield f"{url}/x", seen
        await upstream.close()


async def through(headers: dict[str, str]) -> dict[str, str]:
    """What is carried inside of an application that a request with these headers comes to."""
    inside: list[dict[str, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inside.append(dict(trace_headers()))

    scope = {"type": "http", "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]}
    await TraceContextMiddleware(app)(scope, None, None)  # type: ignore[arg-type]
    assert trace_headers() == {}
    return inside[0]


async def test_a_callers_trace_goes_on_without_opentelemetry() -> None:
    upstream = Upstream("reward", key=SecretStr("k"), metrics=GatewayMetrics.on(CollectorRegistry()))
    given_ = {"traceparent": PARENT, "tracestate": "a=1,b=2"}
    assert await through(given_) == given_
    async with seen_by(upstream) as (url, seen):
        with carrying(given_):
            await upstream.post(url, {}, Deadline.after(5))
            assert upstream.opening_headers().items() >= given_.items()
        await upstream.post(url, {}, Deadline.after(5))
    assert seen == [given_, {}]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_application_passes_a_callers_trace_to_the_policy_and_the_reward(stream: bool) -> None:
    policy, scorer = Recording(), RecordingScorer()
    gateway = GatewayOnDoubles(policy=policy, scorer=scorer)
    async with gateway_client(gateway) as http:
        for headers in ({"traceparent": PARENT}, {}):
            body = {"problem": PROBLEM, "n": 2, "stream": stream}
            assert (await http.post("/v1/solve", json=body, headers=headers)).status_code == 200
    assert (policy.carried, scorer.carried) == ([PARENT, ""], [PARENT, PARENT, "", ""])


MALFORMED = (
    "",
    "x",
    PARENT.upper(),
    PARENT[:-1],
    PARENT + "0",
    "ff" + PARENT[2:],
    f"00-{'0' * 32}-{'1' * 16}-01",
    f"00-{'1' * 32}-{'0' * 16}-01",
    PARENT.replace("0af", "0ag"),
)


@pytest.mark.parametrize("parent", MALFORMED)
async def test_what_is_no_trace_context_is_dropped(parent: str) -> None:
    assert await through({"traceparent": parent, "tracestate": "a=1"}) == {}


@given(st.text(st.characters(max_codepoint=255), max_size=600))
def test_no_state_breaks_a_header(state: str) -> None:
    carried = asyncio.run(through({"traceparent": PARENT, "tracestate": state}))
    assert carried["traceparent"] == PARENT
    assert carried.get("tracestate", "").isprintable() and len(carried.get("tracestate", "")) <= 512


# ------------------------------------------------------------------------------------------------------ the collector


async def test_spans_come_to_the_collector() -> None:
    got: list[ExportTraceServiceRequest] = []

    async def take(request: Request) -> Response:
        got.append(ExportTraceServiceRequest.FromString(await request.body()))
        return Response(b"", media_type="application/x-protobuf")

    async with served(Starlette(routes=[Route("/v1/traces", take, methods=["POST"])])) as url:
        async with open_traces(f"{url}/v1/traces", ratio=1.0, instance="gateway-7") as traces:
            with traces.job(a_job()):
                pass
        (resource,) = got[0].resource_spans
        names = {one.key: one.value.string_value for one in resource.resource.attributes}
        assert (names["service.name"], names["service.instance.id"]) == ("acemath-gateway", "gateway-7")
        assert [span.name for span in resource.scope_spans[0].spans] == ["chat acemath"]


async def test_a_collector_that_is_away_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(20), open_traces(f"{unused_url()}/v1/traces", ratio=1.0, instance="a") as traces:
        with traces.job(a_job()):
            pass


async def test_a_share_of_nothing_keeps_nothing_and_still_passes_a_context_on() -> None:
    async with open_traces(f"{unused_url()}/v1/traces", ratio=0.0, instance="a") as traces:
        with traces.job(a_job()):
            flags = trace_headers()["traceparent"].rpartition("-")[2]
            assert int(flags, 16) & 1 == 0  # not sampled


def test_only_one_module_imports_opentelemetry_and_nobody_imports_that_one() -> None:
    for path in Path(acemath_gateway.__path__[0]).rglob("*.py"):
        imports = [line for line in path.read_text().splitlines() if re.match(r"\s*(from|import)\b", line)]
        named = [line for line in imports if "opentelemetry" in line or "adapters.otel" in line]
        assert bool(named) == (path.name == "otel.py"), path


async def test_the_setting_is_what_makes_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_GATEWAY__REGISTRY_ROOT", "/nonexistent")
    async with _traces(GatewaySettings.checked_from_env()) as traces:
        assert isinstance(traces, NoTraces)
    monkeypatch.setenv("ACEMATH_GATEWAY__OTLP_TRACES_URL", f"{unused_url()}/v1/traces")
    async with _traces(GatewaySettings.checked_from_env()) as traces:
        assert isinstance(traces, OtelTraces)


def test_a_collector_without_opentelemetry_keeps_the_gateway_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_GATEWAY__REGISTRY_ROOT", "/nonexistent")
    monkeypatch.setenv("ACEMATH_GATEWAY__OTLP_TRACES_URL", "http://127.0.0.1:4318/v1/traces")
    assert GatewaySettings.checked_from_env().otlp_traces_url
    monkeypatch.setattr(gateway_settings, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="otel"):
        GatewaySettings.checked_from_env()
