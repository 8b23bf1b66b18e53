"""Work stops the moment nobody waits for it, whether its answer would have been streamed or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.types import Receive

from acemath_core.errors import ClientGone

T = TypeVar("T")


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection; the request's body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        continue


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T], on_gone: Callable[[], None]) -> T:
    """The result of `work`, which is cancelled when the client leaves first.

    Raises:
        ClientGone: the client left; `work` has ended by then.
    """
    task, gone = _current(), None

    async def watch() -> None:
        nonlocal gone
        await until_gone(receive)
        gone = task.cancelling()  # a task group of Python 3.11 may leave a cancellation of its own uncounted for
        task.cancel()  # which finds it inside `work`: nothing else here waits

    watching = asyncio.create_task(watch(), name="until the caller has gone")
    watching.add_done_callback(_seen)
    try:
        return await work
    except BaseException as error:
        if gone is None or task.uncancel() > gone:  # somebody else cancels us, too
            raise
        on_gone()
        raise ClientGone("the caller closed the connection") from error
    finally:
        watching.cancel()


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run `work` beside the block; when the block is left it is cancelled, and has ended."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_seen)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


def _seen(task: asyncio.Task[Any]) -> None:
    """Take note of the exception: whoever wants it asks the task, and nobody else is told of it."""
    if not task.cancelled():
        task.exception()
