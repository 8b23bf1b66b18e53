"""A caller that does not read its answer holds neither memory nor a task for long; who reads slowly gets all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest
from web.raw_service import ASK, PROTOCOLS, RawService

from acemath_web.unread import LEAST_BYTES, UnreadWatch
from doubles.servers import no_task_left, until

LONG = b"/long/16000000"  # more than the buffers of two sockets hold
CLOSING = b"GET %b HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n"


class Waiting:
    """As much of a transport as is looked at."""

    def __init__(self) -> None:
        self.size, self.closing = 0, False

    def get_write_buffer_size(self) -> int:
        return self.size

    def is_closing(self) -> bool:
        return self.closing


class Looks:
    """A watch that is told when to look."""

    def __init__(self) -> None:
        self.given_up = 0
        self.waiting = Waiting()
        self.watch = UnreadWatch(self.waiting, 1e6, self._give_up)  # type: ignore[arg-type]

    def _give_up(self) -> None:
        self.given_up += 1

    def at(self, *sizes: int) -> int:
        for size in sizes:
            self.waiting.size = size
            self.watch.look()
        self.watch.stop()
        return self.given_up


@pytest.fixture
async def looks() -> Looks:
    return Looks()


@pytest.mark.parametrize("size", [1, LEAST_BYTES, 10**7])
@pytest.mark.parametrize("closing", [False, True])
async def test_what_does_not_become_shorter_is_given_up_at_the_second_look(
    looks: Looks, size: int, closing: bool
) -> None:
    looks.waiting.closing = closing
    if not closing:
        looks.watch.full()
    assert looks.at(size) == 0
    assert looks.at(size) == 1


async def test_a_slow_reader_is_given_time(looks: Looks) -> None:
    looks.watch.full()
    assert looks.at(*range(100 * LEAST_BYTES, 0, -LEAST_BYTES), 0) == 0


async def test_a_drip_is_no_reading(looks: Looks) -> None:
    looks.watch.full()
    assert looks.at(10 * LEAST_BYTES, 9 * LEAST_BYTES + 1) == 1


async def test_nobody_is_judged_while_more_is_written(looks: Looks) -> None:
    assert looks.at(500, 500, 500, 700) == 0


async def test_who_made_room_between_two_looks_is_judged_anew(looks: Looks) -> None:
    looks.watch.full()
    assert looks.at(100_000) == 0
    looks.watch.drained()
    looks.watch.full()
    assert looks.at(100_000) == 0
    assert looks.at(100_000) == 1


@contextlib.contextmanager
def _mute(url: str, sent: bytes) -> Iterator[socket.socket]:
    """A caller that sends and reads nothing."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(sent)
        yield caller


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("sent", [ASK % LONG, CLOSING % LONG, (ASK % LONG) * 2], ids=["kept", "closed", "two"])
async def test_an_answer_that_nobody_reads_is_thrown_away(protocol: str, sent: bytes) -> None:
    ended: list[BaseException | None] = []

    class Noting(PROTOCOLS[protocol]):  # type: ignore[misc]
        def connection_lost(self, exc: Exception | None) -> None:
            ended.append(exc)
            super().connection_lost(exc)

    before = asyncio.all_tasks()
    async with RawService(Noting).serving(send_seconds=0.2) as at:
        served = asyncio.all_tasks()
        with _mute(at.url, sent):
            await until(lambda: bool(ended))
            await until(lambda: asyncio.all_tasks() <= served)
        assert await at.livez() == 200
    await no_task_left(before)
