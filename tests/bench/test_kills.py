"""The mixed load takes nothing for an answer that is none, and sends again what broke off."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Callable

import httpx
import pytest

from bench.kills.__main__ import is_named
from bench.kills.calls import Call, Door, Outcome, run

Handler = Callable[[httpx.Request], httpx.Response]


def call(door: Door, **changes: object) -> Call:
    drawn = (Call.drawn(random.Random(seed), ["What is 7 + 5?"], (2,)) for seed in range(1000))
    found = next(one for one in drawn if one.door is door and one.leaves is None)
    return Call(found.door, {**found.body, **changes}, 5.0, None, found.key)


async def ended(handler: Handler, door: Door) -> tuple[Outcome, str, int]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://gateway") as client:
        found = await run(call(door), client, time.monotonic())
    return found.outcome, found.code, found.resent


def events(*payloads: str) -> str:
    return "".join(f"event: x\ndata: {payload}\n\n" for payload in payloads)


SOLUTION = json.dumps({"solution": "12"})
ERROR = json.dumps({"error": {"message": "away", "code": "policy_unavailable"}})


@pytest.mark.parametrize(
    ("door", "status", "text", "expected"),
    [
        (Door.SOLVE, 200, SOLUTION, (Outcome.ANSWERED, "")),
        (Door.SOLVE, 503, ERROR, (Outcome.REFUSED, "503 policy_unavailable")),
        (Door.SOLVE_BAD, 400, ERROR, (Outcome.REFUSED, "400 policy_unavailable")),
        (Door.SOLVE, 200, json.dumps({"solution": None}), (Outcome.LOST, "an answer without a solution")),
        (Door.SOLVE_STREAM, 200, events("{}", SOLUTION), (Outcome.ANSWERED, "")),
        (Door.SOLVE_STREAM, 200, events("{}", ERROR), (Outcome.BROKEN_OFF, "policy_unavailable")),
        (Door.CHAT_STREAM, 200, events("{}", "[DONE]"), (Outcome.ANSWERED, "")),
        (Door.CHAT_STREAM, 200, events(ERROR, "[DONE]"), (Outcome.BROKEN_OFF, "policy_unavailable")),
    ],
)
async def test_how_a_call_ended(door: Door, status: int, text: str, expected: tuple[Outcome, str]) -> None:
    assert await ended(lambda _: httpx.Response(status, text=text), door) == (*expected, 0)


async def test_a_stream_that_just_stops_is_asked_for_again() -> None:
    answers = iter([events("{}"), events("{}", SOLUTION)])
    found = await ended(lambda _: httpx.Response(200, text=next(answers)), Door.SOLVE_STREAM)
    assert found == (Outcome.ANSWERED, "", 1)


async def test_a_broken_connection_is_sent_again_under_the_same_key() -> None:
    keys = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("reset")
        return httpx.Response(200, text=SOLUTION)

    assert await ended(handler, Door.SOLVE) == (Outcome.ANSWERED, "", 1)
    assert len(keys) == 2 and len(set(keys)) == 1


async def test_the_next_gateway_is_asked_and_a_limited_caller_shows_its_key() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, request.headers["authorization"]))
        if len(asked) < 3:
            raise httpx.ConnectError("killed")
        return httpx.Response(200, text=SOLUTION)

    limited = dataclasses.replace(call(Door.SOLVE), limited=True)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler), headers={"authorization": "none"}) as client:
        found = await run(limited, client, time.monotonic(), ("http://one", "http://two"), "secret")
    assert found.outcome is Outcome.ANSWERED and found.resent == 2
    hosts = [host for host, _ in asked]
    assert hosts[0] == hosts[2] != hosts[1] and {key for _, key in asked} == {"Bearer secret"}


async def test_a_caller_that_leaves_is_no_loss() -> None:
    async def slow(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError("the caller has left")

    leaving = call(Door.SOLVE)
    leaving = Call(leaving.door, leaving.body, leaving.deadline, 0.01, leaving.key)
    async with httpx.AsyncClient(transport=httpx.MockTransport(slow), base_url="http://gateway") as client:
        assert (await run(leaving, client, time.monotonic())).outcome is Outcome.LEFT


@pytest.mark.parametrize(
    ("line", "part", "is_it"),
    [
        (["/x/bin/python", "-m", "acemath_gateway"], "acemath_gateway", True),
        (["/x/bin/python", "-m", "acemath_policy"], "acemath_gateway", False),
        (["/x/bin/valkey-server 127.0.0.1:6380", "", ""], "-server", True),
        (["VLLM::EngineCore", "", ""], "VLLM::EngineCore", True),
        (["/x/bin/python", "/x/shim.py", "/x/bin/vllm"], "VLLM::EngineCore", False),
        ([], "-server", False),
    ],
)
def test_a_part_is_known_by_its_program_or_module(line: list[str], part: str, is_it: bool) -> None:
    assert is_named(line, part) is is_it
