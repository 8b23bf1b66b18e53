"""Waiting for what cannot be broken off: a thread goes on when the task that awaits it is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T], alive: Callable[[], bool] = lambda: True) -> T:
    """The result of `work`; a cancellation takes effect only when `work` has ended, and its result is dropped.

    So whoever waits for the cancelled task knows that the memory which `work` took is free again.

    Args:
        work: what cannot be broken off.
        alive: whether `work` can still end; what cannot is given up.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done() and alive():
            await _wait_a_while(task)
        if task.done() and not task.cancelled() and task.exception() is not None:
            _log.info("what was given up had failed: %s", task.exception())
        raise
    finally:
        task.cancel()
        del task  # a traceback that is kept somewhere must not keep the result


async def _wait_a_while(task: asyncio.Task[Any]) -> None:
    try:
        await asyncio.wait({task}, timeout=_LOOK_SECONDS)
    except asyncio.CancelledError:
        _log.debug("cancelled again; the first time counts")
