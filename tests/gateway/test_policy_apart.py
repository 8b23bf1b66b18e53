"""A call for each candidate: stopped alone, retried as one request, and judged by the life in all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from gateway.vllm_rig import PROMPT, Rig, failed, fake, finished, rigged, target

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_gateway.adapters.attempts import SharedPatience
from acemath_gateway.adapters.http import CallFailed
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.replica_turns import Turns
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import PolicyEvent, Sampling
from doubles.fake_vllm_call import SCRIPT
from doubles.servers import EVENT_STREAM, RawServer, chunked, served, until, until_closed, unused_url


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as made:
        yield made


async def ask(rig: Rig, *endpoints: str, n: int = 3, seconds: float = 20.0, **changes: Any) -> list[PolicyEvent]:
    sampling = Sampling(**({"n": n, "temperature": 0.7, "top_p": 0.95, "max_tokens": 256, "seed": 0} | changes))
    asked = (target(*endpoints), PROMPT, sampling, Deadline.after(seconds))
    async with rig.policy.generate_apart(*asked) as candidates, aclosing(candidates.events()) as events:
        return [event async for event in events]


def told(tmp_path: Path, **faults: Any) -> Path:
    control = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    control.write_text(json.dumps(faults))
    return control


async def test_candidate_i_is_sampled_with_seed_plus_i_as_in_one_call(rig: Rig) -> None:
    async with served(fake().app()) as url:
        apart, together = await ask(rig, url, n=5, seed=7), await rig.ask(url, n=5, seed=7)
    assert finished(apart) == finished(together)
    assert [finished(apart)[i].text for i in range(5)] == [SCRIPT[(7 + i) % 3] for i in range(5)]
    assert rig.calls("ok") == 6


async def test_stopping_a_candidate_aborts_it_on_the_server(rig: Rig, tmp_path: Path) -> None:
    server = fake(control=told(tmp_path, script=["x" * 100], token_seconds=0.005))
    sampling = Sampling(4, 0.7, 0.95, 2000, 0)
    async with served(server.app()) as url:
        asked = (target(url), PROMPT, sampling, Deadline.after(60))
        async with rig.policy.generate_apart(*asked) as candidates, aclosing(candidates.events()) as events:
            await anext(events)
            candidates.stop(1)
            candidates.stop(3)
            rest = [event async for event in events]
        await until(lambda: server.running == 0)
    assert sorted(finished(rest)) == [0, 2] and not failed(rest)
    assert (server.finished["stop"], server.finished["abort"]) == (2, 2)
    assert (rig.calls("ok"), rig.calls("cancelled")) == (2, 2)


async def test_closing_aborts_all_of_them(rig: Rig, tmp_path: Path) -> None:
    server = fake(control=told(tmp_path, script=["x" * 4000], token_seconds=0.005))
    async with served(server.app()) as url:
        asked = (target(url), PROMPT, Sampling(3, 0.7, 0.95, 2000, 0), Deadline.after(60))
        async with rig.policy.generate_apart(*asked) as candidates, aclosing(candidates.events()) as events:
            await anext(events)
        await until(lambda: server.running == 0)
    assert rig.calls("cancelled") == 3


async def test_all_of_a_request_go_to_the_same_replica(rig: Rig) -> None:
    one, two = fake(), fake()
    async with served(one.app()) as first, served(two.app()) as second:
        for _ in range(2):
            await ask(rig, first, second, n=6)
    assert [server.finished["stop"] for server in (one, two)] == [6, 6]


async def test_a_replica_that_is_away_costs_one_retry_of_the_budget(rig: Rig) -> None:
    async with served(fake().app()) as good:
        for _ in range(3):
            assert len(finished(await ask(rig, unused_url(), good, n=16))) == 16
    assert rig.calls("ok") == 48
    assert rig.metric("retries_refused_total", role="policy") == 0
    assert rig.upstream.budget.take()
    assert rig.metric("breaker_opens_total", role="policy") <= 3


async def test_all_replicas_away_is_unavailable(rig: Rig) -> None:
    for endpoints in [(unused_url(),), (unused_url(), unused_url()), ()]:
        with pytest.raises(Unavailable) as caught:
            await ask(rig, *endpoints)
        assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE and caught.value.retry_after


async def test_streams_that_break_keep_what_was_finished(rig: Rig, tmp_path: Path) -> None:
    async with served(fake(control=told(tmp_path, script=["ab", "x" * 40], break_after=20)).app()) as url:
        events = await ask(rig, url, n=4)
    assert sorted(finished(events)) == [0, 2]
    assert failed(events) == {1: "broken", 3: "broken"}


async def test_a_refused_request_is_the_callers(rig: Rig) -> None:
    async with served(fake(max_model_len=3).app()) as url:
        with pytest.raises(InvalidRequest, match="maximum context length"):
            await ask(rig, url)


@pytest.mark.parametrize("stamp", [{"model": "other@s1"}, {}])
async def test_another_versions_work_is_never_used(rig: Rig, tmp_path: Path, stamp: dict[str, str]) -> None:
    other = {} if stamp else {"fingerprint": "other@s1"}  # the model is in every chunk, the fingerprint in the last one
    async with served(fake(control=told(tmp_path, **stamp), **other).app()) as url:
        with pytest.raises(Unavailable):
            await ask(rig, url)
    assert rig.calls("mismatch") >= 1


async def test_a_hanging_server_is_left_for_another(rig: Rig, tmp_path: Path) -> None:
    rig.policy = VllmPolicy(rig.upstream, first_token_seconds=2.5)
    async with served(fake(control=told(tmp_path, hang=True)).app()) as stuck, served(fake().app()) as good:
        for _ in range(3):
            assert len(finished(await ask(rig, stuck, good))) == 3
    assert (rig.calls("timeout"), rig.calls("ok")) == (3, 9)
    assert rig.upstream.replicas.breakers._known[stuck].hangs == 1  # one request hung, however many calls it made


async def test_what_waits_for_its_turn_at_the_deadline_is_no_fault_of_the_server(rig: Rig) -> None:
    calls = iter(range(3))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + (chunked(tokens(None)) if next(calls) == 0 else b""))
        await until_closed(reader)

    async with RawServer(script).serving() as url:
        assert sorted(failed(await ask(rig, url, seconds=2.0))) == [0, 1, 2]
    assert rig.metric("breaker_opens_total", role="policy") == 0


async def test_the_only_server_that_hangs_is_left_at_the_deadline(rig: Rig, tmp_path: Path) -> None:
    async with served(fake(control=told(tmp_path, hang=True)).app()) as url:
        with pytest.raises(DeadlineExceeded):
            await ask(rig, url, seconds=2.0)
    assert rig.calls("timeout") == 3


async def test_a_call_that_waits_for_its_turn_is_not_silent_while_others_are_written(rig: Rig) -> None:
    """vLLM has taken two calls and writes one after the other; each takes longer than the longest silence."""
    turn = asyncio.Lock()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM)
        async with turn:
            for step in range(4):
                await asyncio.sleep(0.6)  # silence is what this is about
                writer.write(chunked(tokens("stop" if step == 3 else None)))
                await writer.drain()
            writer.write(chunked(usage()) + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await until_closed(reader)

    rig.policy = VllmPolicy(rig.upstream, first_token_seconds=2.2, between_tokens_seconds=2.2)
    async with RawServer(script).serving() as url, served(fake().app()) as other:
        rig.upstream.replicas._turn = 1  # the slow one is first
        events = await ask(rig, url, other, n=2)
    assert sorted(finished(events)) == [0, 1] and rig.calls("timeout") == 0


async def test_a_replica_that_has_done_its_calls_has_all_its_time_for_those_that_come_later(rig: Rig) -> None:
    """One call breaks at the first and ends at the second; when the first dies, its others come there long after."""
    calls, dead = iter(range(3)), asyncio.Event()

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(calls) > 0:
            await dead.wait()

    rig.policy = VllmPolicy(rig.upstream, between_tokens_seconds=2.0)
    other = fake()
    async with RawServer(dying).serving() as first, served(other.app()) as second:
        rig.upstream.replicas._turn = 1  # the dying one is first
        asked = asyncio.create_task(ask(rig, first, second))
        await until(lambda: other.finished["stop"] == 1)
        await asyncio.sleep(2.1)  # silence is what this is about
        dead.set()
        assert sorted(finished(await asked)) == [0, 1, 2]
    assert rig.calls("timeout") == 0 and not rig.upstream.replicas.is_open(second)


async def test_a_replica_that_answered_after_a_fault_is_at_fault_again_when_it_fails(rig: Rig) -> None:
    turns = Turns(rig.upstream, ["http://a"], Deadline.after(9), lambda others: SharedPatience(Deadline.after(9), 9, 9))
    turn = turns.of(0, CallFailed(CallResult.BROKEN, "broke"))
    assert turn is not None
    for _ in range(3):
        turn.shun(hung=False)
    turn.answered()
    assert not rig.upstream.replicas.is_open("http://a")
    turn.shun(hung=False)
    assert rig.upstream.replicas.is_open("http://a")


async def test_when_none_says_anything_any_more_all_are_given_up(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunked(tokens(None)))
        await until_closed(reader)

    rig.policy = VllmPolicy(rig.upstream, between_tokens_seconds=0.3)
    async with RawServer(script).serving() as url:
        assert failed(await ask(rig, url, seconds=60)) == dict.fromkeys(range(3), "timeout")
    assert rig.calls("timeout") == 3


def tokens(reason: str | None) -> bytes:
    choice = {"index": 0, "text": "a", "token_ids": [1], "finish_reason": reason}
    return f"data: {json.dumps({'model': target().policy, 'choices': [choice]})}\n\n".encode()


def usage() -> bytes:
    last = {"model": target().policy, "choices": [], "system_fingerprint": target().policy}
    return f"data: {json.dumps(last)}\n\n".encode()
