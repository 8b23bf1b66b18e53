"""What the channel names now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from acemath_core.errors import ServiceError
from acemath_registry.channels import Channel
from acemath_registry.following.slow import SlowCalls
from acemath_registry.manifest import ModelKind
from acemath_registry.registry import Registry
from acemath_registry.releases import ReleaseMember

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Desired:
    """The version that should be active.

    Attributes:
        member: the version, with the digest of its manifest.
        release: id of the release that names it.
        generation: the channel's generation.
        canary: the version of a release that gets a share of the requests beside it, maybe the same version; None while
            there is none.
    """

    member: ReleaseMember
    release: str
    generation: int
    canary: Desired | None = None

    def names(self, member: ReleaseMember) -> bool:
        """Whether it is one of the versions that should serve."""
        return member == self.member or (self.canary is not None and member == self.canary.member)


class ChannelFollower:
    """Follows channel → release → the release's version of one kind; a look costs one stat, or
    one request, while nothing has changed.

    Args:
        registry: where the channel is.
        channel: its name.
        kind: which of a release's two versions is followed.
        on_generation: told the generation whenever a look finds one.
        on_error: told whenever a look fails.

    Attributes:
        desired: what was last read; it stays while the registry cannot be read, and generations only grow.
        problem: why the last look failed, None when it did not.
    """

    def __init__(
        self,
        registry: Registry,
        channel: str,
        kind: ModelKind,
        *,
        on_generation: Callable[[int], None],
        on_error: Callable[[], None],
    ) -> None:
        self._registry, self._channel, self._kind = registry, channel, kind
        self._on_generation, self._on_error = on_generation, on_error
        self._calls = SlowCalls()
        self._seen: Hashable | None = None
        self.desired: Desired | None = None
        self.problem: str | None = None

    async def read(self) -> Desired | None:
        """What should be active, as far as is known within two seconds; None before the first promotion."""
        try:
            await self._calls.result(self._look)
        except ServiceError as error:
            self._on_error()
            self._seen = None  # the next look that succeeds says what holds now
            if error.message != self.problem:
                _log.warning("channel %s: %s", self._channel, error.message)
            self.problem = error.message
        return self.desired

    def _look(self) -> None:
        mark = self._registry.channel_mark(self._channel)
        if mark is not None and mark == self._seen:
            return
        channel = self._registry.channel(self._channel)
        member = self._registry.release(channel.release).member(self._kind)
        found, problem = self._beside(channel, Desired(member, channel.release, channel.generation))
        if self.desired is None or found.generation >= self.desired.generation:
            self.desired, self.problem = found, problem
            self._on_generation(found.generation)
        else:
            self.problem = f"the channel went back from generation {self.desired.generation} to {found.generation}"
            _log.error("channel %s: %s; restart the service if the registry was restored", self._channel, self.problem)
        self._seen = mark if problem is None else None

    def _beside(self, channel: Channel, desired: Desired) -> tuple[Desired, str | None]:
        """The same with the canary, if there is one. One that cannot be read holds nothing else up, and one that was
        read before stays: a release never changes.
        """
        if channel.canary is None:
            return desired, None
        known = self.desired.canary if self.desired else None
        member = known.member if known and known.release == channel.canary.release else None
        problem = None
        if member is None:
            try:
                release = self._registry.canary_release(channel)
            except ServiceError as error:
                release, problem = None, f"its canary: {error.message}"
                if problem != self.problem:
                    _log.warning("channel %s: %s", self._channel, problem)
            member = release.member(self._kind) if release else None
        if member is None:
            return desired, problem
        return replace(desired, canary=replace(desired, member=member, release=channel.canary.release)), None
