"""What the channel says, read again only when its file changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace

from acemath_core.errors import ErrorCode, ServiceError, Unavailable
from acemath_registry import Channel, NotFound, Registry, Release, VerificationError

_READ_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Pointer:
    """One release as a channel names it.

    Attributes:
        release: release id.
        generation: the channel's generation that named it.
        policy: policy version, name@version.
        reward: reward version, name@version.
        policy_manifest_sha256: what the release says of the policy's manifest.
        canary: what the channel gives a share of the requests beside it; None while there is none.
    """

    release: str
    generation: int
    policy: str
    reward: str
    policy_manifest_sha256: str
    canary: CanaryPointer | None = None


@dataclass(frozen=True, slots=True)
class CanaryPointer:
    """A release that a share of the requests is to get.

    Attributes:
        release: its id.
        share: above 0 and at most 1 (which only older registries gave).
        pointer: its versions; None when it cannot be read.
        problem: why not, in words.
    """

    release: str
    share: float
    pointer: Pointer | None
    problem: str = ""


class ChannelWatch:
    """Follows one channel. Every method blocks on the disk, or on the object store.

    Args:
        registry: where it is.
        channel: its name.
    """

    def __init__(self, registry: Registry, channel: str) -> None:
        self._registry, self._name = registry, channel
        self._seen: Hashable | None = None
        self._pointers: tuple[Pointer, ...] = ()

    def read(self) -> tuple[Pointer, ...]:
        """What the channel names now and, second, what it named before that, if anything.

        Raises:
            NotFound: nothing was promoted on the channel yet.
            VerificationError, StorageError: what is there cannot be trusted or read.
        """
        stamp = self._registry.channel_mark(self._name)
        if stamp is None or stamp != self._seen:
            self._pointers = self._follow(self._registry.channel(self._name))
            canary = self._pointers[0].canary
            self._seen = None if canary is not None and canary.pointer is None else stamp
        return self._pointers

    def peers(self) -> tuple[Pointer, ...]:
        """The releases by which the channel's gateways route, and the one that they served last, the newest first.

        Raises:
            NotFound, VerificationError, StorageError: a record, or a release that it names, cannot be read.
        """
        served = self._registry.to_come_back_to(self._name)
        found = dict[int, str]() if served is None else {served.generation: served.release}
        for record in self._registry.statuses("gateway", self._name).values():
            generation, release = record.get("generation"), record.get("release")
            if isinstance(generation, int) and isinstance(release, str):
                found[generation] = release
        return tuple(self._pointer(release, generation) for generation, release in sorted(found.items(), reverse=True))

    def _follow(self, channel: Channel) -> tuple[Pointer, ...]:
        newest = replace(self._pointer(channel.release, channel.generation), canary=self._canary(channel))
        if channel.previous is None:
            return (newest,)
        with suppress(NotFound, VerificationError):  # an incomplete copy of a registry; the current one needs it not
            return (newest, self._pointer(channel.previous, channel.generation - 1))
        return (newest,)

    def _canary(self, channel: Channel) -> CanaryPointer | None:
        """One that cannot be read holds the current release up in nothing."""
        if channel.canary is None:
            return None
        release, share = channel.canary.release, channel.canary.share
        try:
            found = self._registry.canary_release(channel)
        except ServiceError as error:
            return CanaryPointer(release, share, None, error.message)
        return CanaryPointer(release, share, _pointer_of(found, channel.generation) if found else None)

    def _pointer(self, release_id: str, generation: int) -> Pointer:
        return _pointer_of(self._registry.release(release_id), generation)


def _pointer_of(release: Release, generation: int) -> Pointer:
    return Pointer(
        release.id, generation, str(release.policy.ref), str(release.reward.ref), release.policy.manifest_sha256
    )


class SlowReader:
    """Reads in a thread, with a deadline; a mount that hangs holds one thread, not one a second.

    Args:
        read: blocks on the disk.
    """

    def __init__(self, read: Callable[[], tuple[Pointer, ...]]) -> None:
        self._read = read
        self._reading: asyncio.Task[tuple[Pointer, ...]] | None = None

    async def result(self) -> tuple[Pointer, ...]:
        """What is read; a read that took too long is waited for again the next time.

        Raises:
            Unavailable: it takes more than two seconds.
            NotFound, VerificationError, StorageError: as `read`.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._read), name="read the registry")
        done, _ = await asyncio.wait({self._reading}, timeout=_READ_SECONDS)
        if not done:
            raise Unavailable(
                "the registry does not answer; check its mount, or the object store",
                code=ErrorCode.NOT_READY,
                retry_after=5.0,
            )
        reading, self._reading = self._reading, None
        return reading.result()
