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
    async with beside(work) as working, beside(until_gone(receive)) as gone:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    on_gone()
    raise ClientGone("the caller closed the connection")


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
