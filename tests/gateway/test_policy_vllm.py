"""The adapter of vLLM: what it sends, what it takes, which version it believes, and its small parts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway.vllm_rig import PROMPT, Rig, fake, finished, rigged

from acemath_core.errors import ErrorCode, InvalidRequest, Unavailable
from acemath_core.wire import FinishReason
from acemath_gateway.adapters.attempts import RetryBudget
from acemath_gateway.adapters.slots_http import HttpSlots
from acemath_gateway.adapters.sse import SseError, SseReader
from acemath_gateway.ports import (
    CandidateFinished,
    TokensGenerated,
)
from doubles.fake_vllm_call import SCRIPT
from doubles.ports import TARGET
from doubles.servers import RawServer, served, unused_url


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as made:
        yield made


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
