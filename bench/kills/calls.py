"""One call of the mixed load: which door, how, and how it ended."""

from __future__ import annotations

import asyncio
import enum
import json
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

AGAIN_SECONDS = 0.5
MAX_TOKENS = 160
LONG, LONG_SHARE = (16, 480), 0.03
"""Candidates and tokens of the large requests, and which part of all they are."""
LIMITED_SHARE = 0.1
LOST_SECONDS = 30.0
"""So long after its deadline a call without an answer or a declared error is lost."""


class Door(enum.StrEnum):
    """Which endpoint, and how."""

    SOLVE = "solve"
    SOLVE_STREAM = "solve, streamed"
    SOLVE_ADAPTIVE = "solve, adaptive"
    SOLVE_BAD = "solve, a mistake in it"
    CHAT = "chat"
    CHAT_STREAM = "chat, streamed"


class Outcome(enum.StrEnum):
    """How a call ended. Everything but `LOST` is accounted for."""

    ANSWERED = "answered"
    REFUSED = "refused"  # a status with an error body
    BROKEN_OFF = "error in the stream"  # declared there, since the status was sent
    LEFT = "left"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended.

    Attributes:
        seconds: until it did.
        code: of the error.
        resent: how often its connection broke and it was sent again.
        at: seconds since the load began.
    """

    door: Door
    outcome: Outcome
    seconds: float
    code: str
    resent: int
    at: float


@dataclass(frozen=True, slots=True)
class Call:
    """One caller's request, as often as it must be sent.

    Attributes:
        leaves: seconds after which the caller hangs up; None: it stays.
        key: Idempotency-Key, for doors that take one: sent again, the request is not paid twice.
        limited: it comes with the API key that has a quota, if there is one.
    """

    door: Door
    body: dict[str, Any]
    deadline: float
    leaves: float | None
    key: str
    limited: bool = False

    @classmethod
    def drawn(cls, draw: random.Random, problems: Sequence[str], counts: Sequence[int]) -> Call:
        """A random one."""
        door = draw.choice([*Door, Door.SOLVE, Door.SOLVE_STREAM, Door.CHAT])
        problem, n, deadline = draw.choice(problems), draw.choice(counts), draw.uniform(10.0, 60.0)
        n, tokens = LONG if draw.random() < LONG_SHARE else (n, MAX_TOKENS)
        own: dict[str, Any] = {"deadline_seconds": deadline}
        if door in (Door.CHAT, Door.CHAT_STREAM):
            messages = [{"role": "user", "content": problem}]
            body = {"model": "acemath", "messages": messages, "best_of": n, "max_tokens": tokens, "acemath": own}
        else:
            body = {"problem": problem, "n": n, "max_tokens": tokens, **own}
        body |= {"stream": True} if door in (Door.SOLVE_STREAM, Door.CHAT_STREAM) else {}
        body |= {"adaptive": True} if door is Door.SOLVE_ADAPTIVE else {}
        body |= {"n": 0} if door is Door.SOLVE_BAD else {}
        leaves = draw.uniform(0.0, 5.0) if draw.random() < 0.05 else None
        key = str(uuid.UUID(int=draw.getrandbits(128)))
        return cls(door, body, deadline, leaves, key, draw.random() < LIMITED_SHARE)


async def run(
    call: Call, client: httpx.AsyncClient, began: float, urls: Sequence[str] = ("",), quota_key: str = ""
) -> Ended:
    """Send it, and again, to the next gateway, while its connection breaks; how it ended."""
    start, resent, first = time.monotonic(), 0, uuid.UUID(call.key).int
    until = start + call.deadline + LOST_SECONDS

    def ended(outcome: Outcome, code: str = "") -> Ended:
        return Ended(call.door, outcome, time.monotonic() - start, code, resent, start - began)

    while time.monotonic() < until:
        try:
            async with asyncio.timeout(min(until - time.monotonic(), call.leaves or LOST_SECONDS * 10)):
                return ended(*await _once(call, client, urls[(first + resent) % len(urls)], quota_key))
        except TimeoutError:
            return ended(Outcome.LEFT) if call.leaves else ended(Outcome.LOST, "no end")
        except httpx.TransportError:
            resent += 1
            await asyncio.sleep(AGAIN_SECONDS)
    return ended(Outcome.LOST, "no connection")


async def _once(call: Call, client: httpx.AsyncClient, url: str, quota_key: str) -> tuple[Outcome, str]:
    path = url + ("/v1/chat/completions" if call.door in (Door.CHAT, Door.CHAT_STREAM) else "/v1/solve")
    headers = {} if call.body.get("stream") else {"idempotency-key": call.key}
    headers |= {"authorization": f"Bearer {quota_key}"} if call.limited and quota_key else {}
    async with client.stream("POST", path, json=call.body, headers=headers) as answer:
        data = (await answer.aread()).decode()
    if answer.status_code != 200:
        return Outcome.REFUSED, f"{answer.status_code} {json.loads(data)['error']['code']}"
    return _of_stream(data) if call.body.get("stream") else _of_body(json.loads(data))


def _of_body(found: dict[str, Any]) -> tuple[Outcome, str]:
    text = found["solution"] if "solution" in found else found["choices"][0]["message"]["content"]
    return (Outcome.ANSWERED, "") if isinstance(text, str) else (Outcome.LOST, "an answer without a solution")


def _of_stream(data: str) -> tuple[Outcome, str]:
    """By its last event: the solution, the end of a chat, or an error; anything else is a stream that just stopped."""
    payloads = [line.removeprefix("data:").strip() for line in data.splitlines() if line.startswith("data:")]
    last = payloads[-1] if payloads else ""
    if last == "[DONE]":
        before = json.loads(payloads[-2])
        return (Outcome.BROKEN_OFF, before["error"]["code"]) if "error" in before else (Outcome.ANSWERED, "")
    found = json.loads(last) if last else {}
    if "error" in found:
        return Outcome.BROKEN_OFF, str(found["error"]["code"])
    if "solution" in found:
        return Outcome.ANSWERED, ""
    raise httpx.RemoteProtocolError("the stream stopped before its last event")
