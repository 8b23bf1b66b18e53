from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_core.wire import FinishReason
from acemath_gateway.adapters.attempts import RetryBudget
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.slots_http import HttpSlots
from acemath_gateway.adapters.sse import SseError, SseReader
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import (
    CandidateFailed,
    CandidateFinished,
    PolicyEvent,
    ReleaseTarget,
    Sampling,
    TokensGenerated,
)
from doubles.fake_vllm import SCRIPT, FakeServer, Tokens
from doubles.ports import TARGET
from doubles.servers import EVENT_STREAM, RawServer, Script, chunked, served, settled, until, until_closed, unused_url

PROMPT = [1, 2, 3]


class Rig:
    """The adapter and what it counts."""

    def __init__(self, key: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self.upstream = Upstream(
            "policy", key=SecretStr(key) if key else None, metrics=GatewayMetrics.on(self.registry)
        )
        self.policy = VllmPolicy(self.upstream, stream_interval=4)

    async def ask(self, *endpoints: str, n: int = 3, seconds: float = 5.0, **changes: Any) -> list[PolicyEvent]:
        sampling = Sampling(**({"n": n, "temperature": 0.7, "top_p": 0.95, "max_tokens": 256, "seed": 0} | changes))
        events = self.policy.generate(target(*endpoints), PROMPT, sampling, Deadline.after(seconds))
        async with aclosing(events):
            return [event async for event in events]

    def calls(self, result: str) -> float:
        return self.metric("upstream_calls_total", role="policy", result=result)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0


def target(*endpoints: str) -> ReleaseTarget:
    return ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, endpoints, ())


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.upstream.close()
    await settled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def fake(**changes: Any) -> FakeServer:
    defaults: dict[str, Any] = {
        "name": TARGET.policy,
        "fingerprint": TARGET.policy,
        "max_model_len": 2048,
        "tokens": Tokens.of(Path("/nonexistent")),
    }
    return FakeServer(**(defaults | changes))


def finished(events: list[PolicyEvent]) -> dict[int, CandidateFinished]:
    return {e.index: e for e in events if isinstance(e, CandidateFinished)}


def failed(events: list[PolicyEvent]) -> dict[int, str]:
    return {e.index: e.reason for e in events if isinstance(e, CandidateFailed)}


async def test_every_candidate_comes_whole(rig: Rig) -> None:
    async with served(fake().app()) as url:
        events = await rig.ask(url, n=3, seed=1)
    done = finished(events)
    assert [done[i].text for i in range(3)] == [SCRIPT[1], SCRIPT[2], SCRIPT[0]]
    assert all(e.finish_reason is FinishReason.STOP for e in done.values())
    for i, event in done.items():
        parts = [e for e in events if isinstance(e, TokensGenerated) and e.index == i]
        assert "".join(part.text for part in parts) == event.text
        assert tuple(t for part in parts for t in part.token_ids) == event.token_ids
        assert len(parts) < len(event.token_ids)  # stream_interval bundles them
    assert rig.calls("ok") == 1


async def test_a_short_candidate_does_not_wait_for_a_long_one(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"script": ["ab", "x" * 40], "token_seconds": 0.002}))
    async with served(fake(control=control).app()) as url:
        events = await rig.ask(url, n=2)
    order = [type(e).__name__ + str(e.index) for e in events if e.index == 0 or isinstance(e, CandidateFinished)]
    later = [e for e in events[events.index(finished(events)[0]) :] if isinstance(e, TokensGenerated) and e.index == 1]
    assert order[-1] == "CandidateFinished1"
    assert later


async def test_the_limit_of_tokens_ends_a_candidate(rig: Rig) -> None:
    async with served(fake().app()) as url:
        events = await rig.ask(url, n=1, max_tokens=5)
    (only,) = finished(events).values()
    assert (only.finish_reason, len(only.token_ids)) == (FinishReason.LENGTH, 5)


async def test_what_is_sent(rig: Rig) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n")

    class Recording(RawServer):
        async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            real = reader.readexactly

            async def readexactly(n: int) -> bytes:
                seen.append(await real(n))
                return seen[-1]

            reader.readexactly = readexactly  # type: ignore[method-assign]
            await super()._handle(reader, writer)

    async with Recording(script).serving() as url:
        with pytest.raises(Unavailable):
            await rig.ask(url, n=2, seed=7, stop=("END",))
    body = json.loads(seen[0])
    assert body["model"] == TARGET.policy
    assert "cache_salt" not in body  # vLLM refuses a salt with the @ that every version has
    assert (body["prompt"], body["n"], body["seed"], body["stop"]) == (PROMPT, 2, 7, ["END"])
    assert body["stream"] and body["return_token_ids"] and body["stream_options"] == {"include_usage": True}
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)


async def test_the_key_is_shown() -> None:
    rig = Rig("secret")
    async with served(fake(key="secret").app()) as url:
        assert len(finished(await rig.ask(url))) == 3
        assert await HttpSlots(rig.upstream).context_length(url, TARGET.policy) == 2048
    await rig.upstream.close()
    rig = Rig("wrong")
    async with served(fake(key="secret").app()) as url:
        with pytest.raises(Unavailable) as caught:
            await rig.ask(url)
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE
    await rig.upstream.close()


async def test_a_refused_request_is_the_callers(rig: Rig) -> None:
    async with served(fake(max_model_len=3).app()) as url:
        with pytest.raises(InvalidRequest, match="maximum context length"):
            await rig.ask(url)
    assert rig.calls("refused") == 1


# ---------------------------------------------------------------------------------------------------------- versions


async def test_a_server_that_says_it_does_not_have_the_version_is_no_mismatch(rig: Rig) -> None:
    async with served(fake(name="p@s9-999999999999").app()) as url:
        with pytest.raises(Unavailable) as caught:
            await rig.ask(url)
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE
    assert (rig.calls("not_served"), rig.metric("version_mismatch_total", role="policy")) == (1, 0)


@pytest.mark.parametrize("stamps", [{"fingerprint": "p@s9-9"}, {"fingerprint": None}])
async def test_another_versions_work_is_not_used(rig: Rig, stamps: dict[str, Any]) -> None:
    async with served(fake(**stamps).app()) as url:
        with pytest.raises(Unavailable) as caught:
            await rig.ask(url)
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE
    assert rig.metric("version_mismatch_total", role="policy") >= 1


async def test_a_wrong_stamp_in_the_first_event_sends_us_to_the_next_server(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"model": "p@s9-999999999999"}))
    async with served(fake(control=control).app()) as wrong, served(fake().app()) as right:
        for _ in range(2):
            assert len(finished(await rig.ask(wrong, right))) == 3
    assert rig.metric("version_mismatch_total", role="policy") == 1


# ------------------------------------------------------------------------------------------------------------ faults


async def test_a_stream_that_breaks_keeps_what_was_finished(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"script": ["ab", "x" * 40], "break_after": 20}))
    async with served(fake(control=control).app()) as url:
        events = await rig.ask(url, n=4)
    assert sorted(finished(events)) == [0, 2]
    assert failed(events) == {1: "broken", 3: "broken"}
    assert rig.calls("broken") == 1


async def test_an_error_event_is_a_broken_stream(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"script": ["ab", "x" * 40], "error_after": 20}))
    async with served(fake(control=control).app()) as url:
        events = await rig.ask(url, n=2)
    assert (sorted(finished(events)), failed(events)) == ([0], {1: "broken"})


async def test_a_hanging_server_is_left_at_the_deadline(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"hang": True}))
    async with served(fake(control=control).app()) as url:
        with pytest.raises(DeadlineExceeded):
            await rig.ask(url, seconds=0.3)
    assert rig.calls("timeout") == 1


async def test_a_hanging_server_is_left_for_another_and_remembered(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"hang": True}))
    rig.policy = VllmPolicy(rig.upstream, first_token_seconds=1.5)
    async with served(fake(control=control).app()) as stuck, served(fake().app()) as good:
        for _ in range(6):
            assert len(finished(await rig.ask(stuck, good, seconds=20))) == 3
    assert (rig.calls("timeout"), rig.calls("ok")) == (1, 6)
    assert rig.metric("upstream_retries_total", role="policy") == 1


async def test_a_server_that_falls_silent_gives_what_it_had_and_is_remembered(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunked(event(0)))
        await until_closed(reader)

    rig.policy = VllmPolicy(rig.upstream, between_tokens_seconds=1.0)
    async with RawServer(script).serving() as silent, served(fake().app()) as good:
        events = await rig.ask(silent, n=2, seconds=60)
        assert (sorted(finished(events)), failed(events)) == ([0], {1: "timeout"})
        for _ in range(4):
            assert len(finished(await rig.ask(silent, good))) == 3
    assert (rig.calls("timeout"), rig.calls("ok")) == (1, 4)


async def test_closing_aborts_generation_on_the_server(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"script": ["x" * 4000], "token_seconds": 0.005}))
    server = fake(control=control)
    async with served(server.app()) as url:
        sampling = Sampling(3, 0.7, 0.95, 2000, 0)
        events = rig.policy.generate(target(url), PROMPT, sampling, Deadline.after(60))
        await anext(events)
        assert server.running == 3
        await events.aclose()
        await until(lambda: server.running == 0)
    assert server.finished["abort"] == 3
    assert rig.calls("cancelled") == 1


async def test_the_next_replica_is_asked_when_one_is_away_or_full(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"status": 503}))
    async with served(fake(control=control).app()) as full, served(fake().app()) as good:
        for _ in range(4):
            assert len(finished(await rig.ask(unused_url(), full, good))) == 3
    assert rig.calls("ok") == 4
    assert rig.metric("upstream_retries_total", role="policy") == rig.calls("unreachable") + rig.calls("overloaded") > 0


async def test_all_replicas_away_is_unavailable(rig: Rig) -> None:
    for endpoints in [(unused_url(),), (unused_url(), unused_url()), ()]:
        with pytest.raises(Unavailable) as caught:
            await rig.ask(*endpoints)
        assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE
        assert caught.value.retry_after


async def test_retries_have_a_budget(rig: Rig) -> None:
    urls = [unused_url(), unused_url()]
    for _ in range(30):
        with pytest.raises(Unavailable):
            await rig.ask(*urls)
    assert rig.metric("upstream_retries_total", role="policy") <= 10 + 30 * 0.2


async def test_the_least_loaded_replica_is_asked_first(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"script": ["x" * 50], "token_seconds": 0.005}))
    one, two = fake(control=control), fake(control=control)
    async with served(one.app()) as first, served(two.app()) as second:
        await asyncio.gather(*(rig.ask(first, second, n=1) for _ in range(8)))
    assert one.finished["stop"] == two.finished["stop"] == 4


def stream_of(*parts: bytes, end: bytes = b"0\r\n\r\n") -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + b"".join(chunked(part) for part in parts) + end)
        await writer.drain()

    return script


def event(index: int = 0, text: str = "hi", finish: str | None = "stop", ids: Any = (5,), **more: Any) -> bytes:
    choice = {"index": index, "text": text, "token_ids": list(ids), "finish_reason": finish}
    return b"data: " + json.dumps({"model": TARGET.policy, "choices": [choice], **more}).encode() + b"\n\n"


LAST = b'data: {"model": "%b", "choices": [], "system_fingerprint": "%b"}\n\ndata: [DONE]\n\n' % (
    (TARGET.policy.encode(),) * 2
)

GARBAGE: dict[str, tuple[bytes, ...]] = {
    "not json": (b"data: {{{{\n\n",),
    "not a chunk": (b'data: {"model": "p", "choices": 3}\n\n',),
    "not utf-8": (b"data: \xff\xfe\n\n",),
    "no token ids": (b'data: {"model": "m", "choices": [{"index": 0, "text": "a"}]}\n\n',),
    "a candidate nobody asked for": (event(index=7), LAST),
    "a negative index": (event(index=-1), LAST),
    "no end": (event(finish=None),),
    "done before the candidates are": (event(finish=None), LAST),
    "more tokens than allowed": (event(ids=range(999), finish=None), LAST),
    "an endless line": (b"data: " + b"x" * 5_000_000,),
    "an error": (b'data: {"error": {"message": "x"}}\n\n', b"data: [DONE]\n\n"),
    "nothing": (),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_a_broken_stream_and_never_an_answer(rig: Rig, kind: str) -> None:
    server = RawServer(stream_of(*GARBAGE[kind]))
    async with server.serving() as url:
        try:
            events = await rig.ask(url, n=1)
        except Unavailable as error:
            assert error.code is ErrorCode.POLICY_UNAVAILABLE
        else:
            assert (finished(events), failed(events)) == ({}, {0: "broken"})
    assert rig.calls("ok") == 0
    assert server.open == 0


async def test_a_candidate_that_goes_on_after_its_end_breaks_the_stream(rig: Rig) -> None:
    async with RawServer(stream_of(event(0), event(0), LAST)).serving() as url:
        events = await rig.ask(url, n=2)
    assert (sorted(finished(events)), failed(events)) == ([0], {1: "broken"})


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", "?"])
async def test_an_end_that_is_no_end_fails_the_candidate(rig: Rig, reason: str) -> None:
    async with RawServer(stream_of(event(0), event(1, finish=reason), LAST)).serving() as url:
        events = await rig.ask(url, n=2)
    assert (sorted(finished(events)), failed(events)) == ([0], {1: reason})


async def test_events_may_be_cut_anywhere_and_have_comments(rig: Rig) -> None:
    whole = b": keep-alive\n\nevent: x\r\n" + event(0, "größer", finish="stop").replace(b"\n", b"\r\n") + LAST
    async with RawServer(stream_of(*(whole[i : i + 1] for i in range(len(whole))))).serving() as url:
        (only,) = finished(await rig.ask(url, n=1)).values()
    assert only.text == "größer"


async def test_a_server_that_drips_bytes_is_left_at_the_deadline(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunked(event(0)))
        while True:
            writer.write(chunked(b": still here\n\n"))
            await writer.drain()
            await asyncio.sleep(0.01)

    server = RawServer(script)
    async with server.serving() as url:
        events = await rig.ask(url, n=2, seconds=0.3)
        assert (sorted(finished(events)), failed(events)) == ([0], {1: "timeout"})
        await until(lambda: server.open == 0)


async def test_a_connection_that_was_idle_too_long_is_tried_again(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.connections == 1:
            writer.transport.abort()
        else:
            writer.write(EVENT_STREAM + chunked(event(0)) + chunked(LAST) + b"0\r\n\r\n")
            await writer.drain()

    server = RawServer(script)
    async with server.serving() as url:
        assert len(finished(await rig.ask(url, n=1))) == 1
    assert server.connections == 2


async def test_a_page_instead_of_a_stream(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi")
        await writer.drain()

    async with RawServer(script).serving() as url:
        with pytest.raises(Unavailable):
            await rig.ask(url)


async def test_cancelling_while_nothing_has_come_yet_closes_the_connection(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until_closed(reader)

    server = RawServer(script)
    async with server.serving() as url:
        asking = asyncio.create_task(rig.ask(url, seconds=60))
        await until(lambda: server.open == 1)
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: server.open == 0)
    assert rig.calls("cancelled") == 1


# -------------------------------------------------------------------------------------------------------- small parts


def test_the_reader_refuses_an_event_of_many_lines_without_end() -> None:
    reader = SseReader(max_event_bytes=100)
    with pytest.raises(SseError):
        for _ in range(100):
            reader.feed(b"data: xxxxxxxx\n")


def test_a_retry_budget_is_earned() -> None:
    budget = RetryBudget(share=0.5, most=1)
    assert budget.take()
    assert not budget.take()
    budget.earn()
    budget.earn()
    assert budget.take()


@asynccontextmanager
async def slots_server(body: bytes) -> AsyncIterator[str]:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with RawServer(script).serving() as url:
        yield url


@pytest.mark.parametrize("body", [b"", b"{}", b'[{"version": 3}]', b"x" * 2_000_000])
async def test_slots_that_are_none_are_unavailable(rig: Rig, body: bytes) -> None:
    async with slots_server(body) as url:
        with pytest.raises(Unavailable):
            await HttpSlots(rig.upstream).slots(url)
        with pytest.raises(Unavailable):
            await HttpSlots(rig.upstream).context_length(url, TARGET.policy)


async def test_slots_of_a_replica_that_is_away(rig: Rig) -> None:
    with pytest.raises(Unavailable):
        await HttpSlots(rig.upstream).slots(unused_url())
