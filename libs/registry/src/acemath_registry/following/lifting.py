"""A version's way from verifying to ready, or to rejected, as a task: what is tried again, and what is given up."""

from __future__ import annotations

import abc
import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_registry.audit import AuditEvent
from acemath_registry.errors import DiskFull, NotFound, StorageError
from acemath_registry.following.version import SERVING, FollowedVersion
from acemath_registry.registry import Registry

_log = logging.getLogger(__name__)
V = TypeVar("V", bound=FollowedVersion)
_WAITS = "verified; waits for its place"
_MOST_DOUBLINGS = 30  # a float of 2 to the 1,024th is none


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a version is tried.

    Attributes:
        attempts: failed ones in a row after which it is rejected, if another version serves; else it is tried for ever.
        backoff_max_seconds: longest wait between two.
        bad: errors that say the version itself is bad: it is rejected at once.
        transient: errors that may go away. A `StorageError` says nothing of the version and is no failed attempt, a
            full disk of this machine neither; nor is what is not there, in a registry that is not there itself. What
            nobody foresaw counts as one of these: a device that is short of memory for a moment is no fault of the
            version.
    """

    attempts: int
    backoff_max_seconds: float
    bad: tuple[type[Exception], ...]
    transient: tuple[type[Exception], ...]


class NoPlace(Exception):
    """The version it waited for did not make room; the message says why."""


class Lifting(abc.ABC, Generic[V]):
    """Brings versions up; each service says how one attempt goes.

    Args:
        patience: how often a version is tried.
        versions: every version that lives now; the list itself, which its owner changes.
        registry: whose audit log hears of rejections.
        replica: who rejects, for that log: service and instance.
        on_rejected: told of each rejection.
        on_phase: told the name and the seconds of each phase that ended well.
    """

    def __init__(
        self,
        patience: Patience,
        versions: Sequence[V],
        *,
        registry: Registry,
        replica: str,
        on_rejected: Callable[[], object],
        on_phase: Callable[[str, float], object],
    ) -> None:
        self._patience, self._versions = patience, versions
        self._registry, self._replica = registry, replica
        self._on_rejected, self._on_phase = on_rejected, on_phase

    def up(self, version: V) -> None:
        """Begin to bring a version up."""
        version.work = asyncio.create_task(self._bring_up(version))

    def reject(self, version: V, reason: str) -> None:
        """Begin to end a version that is ready, and that nothing will ever use."""
        version.move(SlotState.REJECTED, reason)
        version.work = asyncio.create_task(self._reject(version, reason))

    @abc.abstractmethod
    async def _attempt(self, version: V) -> None:
        """Bring it to ready; raises one of the declared errors when that fails."""

    async def _let_go(self, version: V) -> None:
        """Free what a failed attempt, or an earlier life, left."""

    async def _make_space(self) -> None:
        """Free what nobody needs on this machine's disk; it was full."""

    async def _until_placed(self, version: V) -> None:
        """Wait, once it is verified and before anything is loaded, until it may be loaded.

        Raises:
            NoPlace: it may not be; it is rejected.
        """
        reason = version.reason
        if not version.place.is_set():
            version.waits = True
            version.move(version.state, _WAITS)
            await version.place.wait()
        if version.refusal is not None:
            raise NoPlace(version.refusal)
        version.waits = False
        version.move(version.state, reason)

    def _dispensable(self, version: V) -> bool:
        """Whether it may be rejected after some failed attempts: another one serves, or did until it made way."""
        return version.displaced or any(other.state in SERVING for other in self._versions if other is not version)

    async def _bring_up(self, version: V) -> None:
        away = 0  # attempts in which the registry was not there or could not be read, or the disk was full
        while True:
            try:
                await self._let_go(version)
                await self._wait(version.failures + away)
                await self._attempt(version)
                return
            except NoPlace as error:
                await self._reject(version, str(error))
                return
            except Exception as error:
                outage = await self._is_outage(error)
                if isinstance(error, self._patience.bad) and not outage:
                    await self._reject(version, str(error))
                    return
                reason = self._told(version, error)
                away, version.failures = away + outage, version.failures + (not outage)
                version.move(version.state, reason)
                _log.warning("%s: attempt %d failed: %s", version.ref, version.failures + away, reason)
                if isinstance(error, DiskFull):
                    await self._make_space()
                if not outage and version.failures >= self._patience.attempts and self._dispensable(version):
                    await self._reject(version, reason)
                    return

    async def _is_outage(self, error: Exception) -> bool:
        """Whether it says nothing of the version: this machine's disk is full, or the registry was away."""
        return isinstance(error, StorageError) or (
            _says_missing(error) and not await asyncio.to_thread(_is_there, self._registry)
        )

    def _told(self, version: V, error: Exception) -> str:
        """The reason that is shown; what nobody foresaw may say more than everybody should read."""
        if isinstance(error, self._patience.transient):
            return str(error)
        _log.error("%s: bringing it up failed", version.ref, exc_info=error)
        return f"{type(error).__name__}; see this replica's log"

    async def _wait(self, failed: int) -> None:
        if failed:
            await asyncio.sleep(min(2.0 ** min(failed - 1, _MOST_DOUBLINGS), self._patience.backoff_max_seconds))

    async def _reject(self, version: V, reason: str) -> None:
        await self._let_go(version)
        version.move(SlotState.REJECTED, reason)
        self._on_rejected()
        _log.error("%s is rejected: %s", version.ref, reason)
        note = partial(self._registry.note, AuditEvent.REJECT, by=self._replica, what=str(version.ref), why=reason)
        await asyncio.to_thread(note)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield  # a failed phase is not a duration
        self._on_phase(phase, time.monotonic() - started)


def _says_missing(error: Exception) -> bool:
    """Whether it only says that something is not there, as a registry says of everything that is not mounted."""
    return isinstance(error, NotFound) or isinstance(error.__cause__, NotFound | FileNotFoundError)


def _is_there(registry: Registry) -> bool:
    """Whether the registry can be read; a place where nothing is mounted is a directory too, but without a channel."""
    try:
        return bool(registry.channel_names())
    except ServiceError:
        return False
