"""Requests at times that were fixed before, whatever became of the ones before them (an open loop).

Each latency counts from the time at which its request was due, so that a server which stands still is charged for all
that should have been asked meanwhile ("coordinated omission" is what a client that waits would measure instead).
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import httptools

MAX_CONNECTIONS = 512
PROBLEM = "Number {i}: three baskets with eight apples in each stand in a shop, and {i} customers come in. "


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked.

    Attributes:
        host: of the server.
        port: of the server.
        path: of every request.
        fields: of every body, besides the messages.
        headers: of every request.
    """

    host: str
    port: int
    path: str
    fields: dict[str, object]
    headers: dict[str, str]

    def request(self, number: int) -> bytes:
        """The bytes of the `number`-th request; no two have the same problem."""
        messages = [{"role": "user", "content": PROBLEM.format(i=number) + "How many apples are there?"}]
        body = json.dumps({"model": "acemath", "messages": messages, **self.fields}).encode()
        named = {"host": f"{self.host}:{self.port}", "content-type": "application/json", **self.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
        return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one load.

    Attributes:
        latencies: seconds of each request that was answered with 200, from when it was due.
        failed: requests that were answered with another status, or whose connection broke.
        unanswered: requests without an answer when the patience ended.
        seconds: from the first request's time to the last answer.
    """

    latencies: list[float]
    failed: int
    unanswered: int
    seconds: float

    def percentile(self, share: float) -> float | None:
        """Seconds within which that share of all requests was answered; None when it was not."""
        sent = len(self.latencies) + self.failed + self.unanswered
        place = math.ceil(share * sent) - 1
        ordered = sorted(self.latencies)
        return ordered[place] if place < len(ordered) else None


def due_times(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds from the start: a Poisson process, the same for the same seed."""
    draw, now, found = random.Random(seed), 0.0, []
    while (now := now + draw.expovariate(rate)) < seconds:
        found.append(now)
    return found


class _Connection(asyncio.Protocol):
    """One connection: a request, then its answer, then the next."""

    def __init__(self, free: deque[_Connection]) -> None:
        self._free = free
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """Send a request; the future's result is the status of its answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, None
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if keep:
            self._free.append(self)
        else:
            self.close()
        if answer is not None and not answer.done():
            answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Sender:
    """Sends what is due over as few connections as will do."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._free: deque[_Connection] = deque()
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self.latencies: list[float] = []
        self.failed = 0

    async def send(self, number: int, due: float) -> None:
        loop = asyncio.get_running_loop()
        request = self._target.request(number)
        try:
            async with self._places:
                connection = await self._connection()
                try:
                    status = await connection.ask(request)
                except asyncio.CancelledError:
                    connection.close()
                    raise
        except OSError:
            status = 0
        if status == 200:
            self.latencies.append(loop.time() - due)
        else:
            self.failed += 1

    async def _connection(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                return connection
        _, made = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._free), self._target.host, self._target.port
        )
        return made

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


async def offer(target: Target, times: Sequence[float], *, patience: float) -> Load:
    """Send a request at each of the times, and wait `patience` seconds after the last for what is left.

    Args:
        target: what to ask.
        times: seconds from now (`due_times`).
        patience: seconds.
    """
    loop, sender = asyncio.get_running_loop(), _Sender(target)
    tasks: list[asyncio.Task[None]] = []
    gc.collect()
    gc.disable()  # a pause of ours would be counted as the server's
    try:
        start = loop.time() + 0.05
        for number, at in enumerate(times):
            if (wait := start + at - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(sender.send(number, start + at)))
        _, late = await asyncio.wait(tasks, timeout=patience)
        seconds = loop.time() - start
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
    finally:
        gc.enable()
        sender.close()
    return Load(sender.latencies, sender.failed, len(late), round(seconds, 3))
