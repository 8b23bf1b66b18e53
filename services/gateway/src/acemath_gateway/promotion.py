"""Changes where a channel points, for requests: in a thread, one change at a time, with a deadline."""

from __future__ import annotations

import asyncio
import errno
import functools
from collections.abc import Callable
from typing import TypeVar

from acemath_core.errors import Conflict, ErrorCode, NotFound, Unavailable
from acemath_registry import Channel, Registry, StorageError
from acemath_registry.moves import Move
from acemath_registry.refs import absent_channel

T = TypeVar("T")

_SECONDS = 40.0  # the registry's own lock is waited for during 30
_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class ChannelChanges:
    """Promotes and rolls back.

    A change that has begun ends, whether or not somebody still waits for it; a mount that hangs holds one thread.

    Args:
        registry: whose channels.
        seconds: longest wait, for the change before and for this one.
    """

    def __init__(self, registry: Registry, seconds: float = _SECONDS) -> None:
        self._registry, self._seconds = registry, seconds
        self._turn = asyncio.Lock()

    async def promote(
        self, channel: str, release: str, *, expected_generation: int | None, by: str, again: bool = False
    ) -> Move:
        """Point a channel at a release; only where 0 is expected may it be one that does not exist yet.

        See `Registry.move` for errors.

        Raises:
            NotFound: there is no such channel, and none was to be begun.
            Conflict: (`registry_read_only`) the registry is mounted read-only here.
            Unavailable: (`not_ready`) the registry does not answer in time.
        """

        def move() -> Move:
            if expected_generation != 0:
                self._require(channel)
            return self._registry.move(channel, release, expected_generation=expected_generation, by=by, again=again)

        return await self._change(move)

    async def rollback(
        self, channel: str, *, expected_generation: int | None, by: str, expected_release: str | None = None
    ) -> Channel:
        """Go back from `expected_release` (None: whatever is current), and undo no rollback by accident.

        See `Registry.rollback` for errors; raises as `promote` too.
        """

        return await self._change(
            functools.partial(
                self._registry.rollback,
                channel,
                by=by,
                expected_generation=expected_generation,
                expected_release=expected_release,
                once=True,
            )
        )

    def _require(self, channel: str) -> None:
        """A name with a typo begins no channel, and is told those that there are."""
        missing = absent_channel(channel, self._registry.channel_names())
        if missing is not None:
            begin = 'begin it by promoting on it with "expected_generation": 0'
            raise NotFound(f"{missing}; correct its name, or {begin}", param="channel")

    async def _change(self, change: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise _does_not_answer("nothing was changed; try again") from None
        task = asyncio.ensure_future(asyncio.to_thread(change))
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=self._seconds)
        if not done:
            # Who asks again without looking may undo what the first request does after all.
            raise _does_not_answer("the change may still take place; read the channel", should_retry=False)
        try:
            return task.result()
        except StorageError as error:
            raise _read_only() if _not_writable(error) else error from error

    def _ended(self, task: asyncio.Future[T]) -> None:
        self._turn.release()
        if not task.cancelled():
            task.exception()  # whoever still waits is told by `result`


def _not_writable(error: StorageError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _NOT_WRITABLE


def _read_only() -> Conflict:
    return Conflict(
        "the registry cannot be written from this gateway (it is mounted read-only, or belongs to another user); mount "
        "it writable, or run `acemath registry promote` where it is",
        code=ErrorCode.REGISTRY_READ_ONLY,
        should_retry=False,
    )


def _does_not_answer(then: str, should_retry: bool | None = None) -> Unavailable:
    return Unavailable(
        f"the registry does not answer; check its mount; {then}",
        code=ErrorCode.NOT_READY,
        retry_after=10.0,
        should_retry=should_retry,
    )
