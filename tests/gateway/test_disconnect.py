"""A request's work ends with its caller, whatever else happens to it at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from acemath_core.errors import ClientGone, Unavailable
from acemath_gateway.routes.disconnect import unless_gone

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Caller:
    """Who waits for an answer, until `leave` is set."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.left = 0

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    def gone(self) -> None:
        self.left += 1

    def ask(self, work: Callable[[], Awaitable[str]]) -> asyncio.Task[str]:
        async def worked() -> str:
            return await work()

        return asyncio.create_task(unless_gone(self.receive, worked(), self.gone))


async def test_who_stays_gets_the_answer_or_the_error() -> None:
    async def works() -> str:
        await asyncio.sleep(0)
        return "24"

    async def fails() -> str:
        raise Unavailable("full")

    caller = Caller()
    assert await caller.ask(works) == "24"
    with pytest.raises(Unavailable):
        await caller.ask(fails)
    assert caller.left == 0


async def test_the_work_of_who_leaves_has_ended_when_that_is_said() -> None:
    caller, ended = Caller(), asyncio.Event()

    async def works() -> str:
        try:
            caller.leave.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)  # what ends may take its time
            ended.set()
        return "never"

    with pytest.raises(ClientGone):
        await caller.ask(works)
    assert ended.is_set() and caller.left == 1


async def test_who_leaves_while_the_work_fails_has_left() -> None:
    caller = Caller()

    async def works() -> str:
        try:
            caller.leave.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise Unavailable("broken off") from None
        return "never"

    with pytest.raises(ClientGone):
        await caller.ask(works)
    assert caller.left == 1


async def test_an_end_from_outside_is_no_caller_that_left() -> None:
    caller, begun = Caller(), asyncio.Event()

    async def works() -> str:
        begun.set()
        await asyncio.sleep(3600)
        return "never"

    asking = caller.ask(works)
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert caller.left == 0


async def test_a_task_group_that_failed_before_does_not_hide_it() -> None:
    caller = Caller()

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise Unavailable("one of several")

    async def works() -> str:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fails())
        except* Unavailable:
            pass
        caller.leave.set()  # Python 3.11's task group has cancelled this task, and never says that it is over
        await asyncio.sleep(3600)
        return "never"

    with pytest.raises(ClientGone):
        await caller.ask(works)
    assert caller.left == 1
