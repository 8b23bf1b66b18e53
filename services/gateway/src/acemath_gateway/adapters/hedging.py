"""A second call beside one that takes long, for whichever ends well first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from acemath_core.errors import InvalidRequest

Call = Coroutine[Any, Any, None]


async def hedged(first: Call, second: Callable[[], Call | None], after_seconds: float) -> None:
    """Run `first`; when it takes longer than `after_seconds`, what `second` gives too, if anything; one well ends both.

    Raises:
        InvalidRequest: one of them found our request at fault, as the other would.
        Exception: `first` failed before there was a second one, or both failed: the later failure.
    """
    begun: set[asyncio.Future[None]] = {asyncio.ensure_future(first)}
    try:
        done, _ = await asyncio.wait(begun, timeout=after_seconds)
        another = second() if not done else None
        if another is not None:
            begun.add(asyncio.ensure_future(another))
        await _one_well(begun)
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


async def _one_well(begun: set[asyncio.Future[None]]) -> None:
    pending, failure = set(begun), None
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            failure = task.exception()
            if failure is None:
                return
            if isinstance(failure, InvalidRequest):
                raise failure
    if failure is not None:
        raise failure
