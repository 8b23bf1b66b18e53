"""Streams of vLLM that break, hang, drip or talk nonsense, and replicas that stand in for each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway.vllm_rig import PROMPT, Rig, failed, fake, finished, rigged, target

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, Unavailable
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.ports import (
    Sampling,
)
from doubles.ports import TARGET
from doubles.servers import EVENT_STREAM, RawServer, Script, chunked, served, until, until_closed, unused_url


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as made:
        yield made


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
            await rig.ask(url, seconds=2.0)
    assert rig.calls("timeout") == 1


async def test_a_hanging_server_is_left_for_another_and_remembered(rig: Rig, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"hang": True}))
    rig.policy = VllmPolicy(rig.upstream, first_token_seconds=2.5)
    async with served(fake(control=control).app()) as stuck, served(fake().app()) as good:
        for _ in range(6):
            assert len(finished(await rig.ask(stuck, good, seconds=20))) == 3
    assert (rig.calls("timeout"), rig.calls("ok")) == (1, 6)
    assert rig.metric("upstream_retries_total", role="policy") == 1


async def test_a_server_that_falls_silent_gives_what_it_had_and_is_remembered(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunked(event(0)))
        await until_closed(reader)

    rig.policy = VllmPolicy(rig.upstream, between_tokens_seconds=2.5)
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
        events = await rig.ask(url, n=2, seconds=2.0)
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
