"""Who still uses an old version. A missing or old record means *unknown*, never zero."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from acemath_core.errors import Conflict, ServiceError
from acemath_registry.audit import AuditEvent
from acemath_registry.errors import VerificationError
from acemath_registry.following.channel import Desired
from acemath_registry.following.slow import SlowCalls
from acemath_registry.manifest import ModelKind
from acemath_registry.refs import check_by
from acemath_registry.registry import Registry
from acemath_registry.releases import ReleaseMember

_log = logging.getLogger(__name__)
_FORGET = "; if it has ended: acemath registry forget-gateway"
_CLOCKS_SECONDS = 5.0  # two machines' clocks may differ by so much

_KINDS = (ModelKind.POLICY, ModelKind.REWARD)
_REMEMBERED = 64  # releases whose members are kept in memory


@dataclass(frozen=True, slots=True)
class Use:
    """How a version is used.

    Attributes:
        how: by which gateway, in words.
        generation: the newest generation by which a gateway routes to it; 0 while it only has leases.
        release: the one by which it is used.
        kind: of the version.
    """

    how: str
    generation: int
    release: str
    kind: ModelKind


@dataclass(frozen=True, slots=True)
class Usage:
    """Which versions the gateways use, policy and reward versions alike, as all their records say together.

    Attributes:
        unknown: why that is not known of every gateway, in words; None when it is.
        written: Unix time of the oldest record.
        users: version → how it is used; one that no gateway routes to or holds a lease on is not there.
        leased: version → by whom; one that no job holds is not there, whoever routes to it.
        viewed: Unix time of what replicas said, by which new leases are given, of the gateway where that is oldest;
            None when one does not say.
        served: by kind, the version that was served last, known or not what gateways do now; none where it is not to
            come back (`acemath_registry.served`).
    """

    unknown: str | None
    written: float = 0.0
    users: Mapping[ReleaseMember, Use] = field(default_factory=dict)
    leased: Mapping[ReleaseMember, str] = field(default_factory=dict)
    viewed: float | None = None
    served: Mapping[ModelKind, Desired] = field(default_factory=dict)


class Leases(Protocol):
    """What every gateway says of the releases it still works with."""

    async def holder(self, member: ReleaseMember, generation: int, releases: Collection[str]) -> str | None:
        """Why a version may still be in use, in words; None once every gateway has let go of it.

        Args:
            member: the version.
            generation: the last channel generation that is known to have named it.
            releases: ids of the releases that are known to have named it.
        """
        ...

    async def usage(self) -> Usage:
        """Which versions are in use, whatever the generations say."""
        ...


class _Unknown(Exception):
    """What a gateway does is not known; the message says why."""


@dataclass(frozen=True, slots=True)
class _Record:
    gateway: str
    generation: int
    release: str | None
    leases: Mapping[str, Any]
    at: float
    viewed: float | None

    def held(self) -> Iterator[tuple[str, str, int]]:
        """Releases in use, how, and by which generation (0: leases only)."""
        if self.release is not None:
            how = f"gateway {self.gateway}: it still routes by generation {self.generation}"
            yield self.release, how, self.generation
        for release, count in self.leases.items():
            if count:
                yield release, f"gateway {self.gateway}: it holds leases", 0


class StatusLeases:
    """Reads `status/gateway/<instance>.json` in the registry.

    A record is `{"channel": c, "generation": g, "release": id, "leases": {release id: count}, "at": unix seconds}`: g
    and id are the channel generation and the release to which that gateway sends new requests (0 and null before its
    first), and `leases` everything it holds. `"viewed"` (Unix seconds) is when it began to ask the replicas for what
    new leases are given by; older gateways write neither it nor their channel. A gateway that ends in order removes its
    own record; for one that was killed a person does (`forget_gateway`).

    Args:
        registry: where the records lie.
        channel: the one that this replica follows; gateways on others send nothing here.
        max_age_seconds: an older record is unknown: its gateway may be cut off and still at work.
        now: Unix time.
    """

    def __init__(
        self, registry: Registry, channel: str, max_age_seconds: float, now: Callable[[], float] = time.time
    ) -> None:
        self._registry, self._channel, self._max_age, self._now = registry, channel, max_age_seconds, now
        self._members: dict[str, tuple[ReleaseMember, ReleaseMember]] = {}
        self._calls = SlowCalls()

    async def holder(self, member: ReleaseMember, generation: int, releases: Collection[str]) -> str | None:
        """See `Leases.holder`."""
        try:
            return await self._calls.result(lambda: self._holder(member, generation, releases))
        except ServiceError as error:
            return _unreadable(error)

    async def usage(self) -> Usage:
        """See `Leases.usage`; a record that names no release although it has a generation is unknown."""
        try:
            return await self._calls.result(self._usage)
        except ServiceError as error:
            return Usage(_unreadable(error))

    def _holder(self, member: ReleaseMember, generation: int, releases: Collection[str]) -> str | None:
        try:
            for record in self._records():
                if record.generation <= generation:
                    return f"gateway {record.gateway}: it still routes by generation {record.generation}"
                # By its members too: of two promotions in one second the gateway may have seen the one we did not.
                for release, how, _ in record.held():
                    if release in releases or member in self._of(record, release):
                        return how
        except _Unknown as unknown:
            return str(unknown)
        return None

    def _usage(self) -> Usage:
        users: dict[ReleaseMember, Use] = {}
        leased: dict[ReleaseMember, str] = {}
        try:
            records = self._records()
            for record in records:
                self._trust(record)
                for release, how, generation in record.held():
                    for kind, member in zip(_KINDS, self._of(record, release), strict=True):
                        use = Use(how, generation, release, kind)
                        users[member] = max(use, users.get(member, use), key=lambda one: one.generation)
                        if record.leases.get(release):
                            leased[member] = f"gateway {record.gateway}: it holds leases"
        except _Unknown as unknown:
            return Usage(str(unknown), served=self._served())
        written, viewed = min(record.at for record in records), _oldest_view(records)
        return Usage(None, written, users, leased, viewed, self._served())

    def _served(self) -> dict[ModelKind, Desired]:
        try:
            known = self._registry.to_come_back_to(self._channel)
            release = None if known is None else self._registry.release(known.release)
        except ServiceError:
            return {}
        if known is None or release is None:
            return {}
        return {kind: Desired(release.member(kind), known.release, known.generation) for kind in _KINDS}

    def _records(self) -> list[_Record]:
        try:
            found = self._registry.statuses("gateway", self._channel)
        except ServiceError as error:
            raise _Unknown(_unreadable(error)) from error
        if not found:
            raise _Unknown("no gateway has written a record")
        return [self._record(name, document) for name, document in found.items()]

    def _record(self, name: str, record: dict[str, Any]) -> _Record:
        routed, leases, at, release = (record.get(key) for key in ("generation", "leases", "at", "release"))
        if not isinstance(routed, int) or not isinstance(leases, dict) or not isinstance(at, int | float):
            raise _Unknown(f"gateway {name}: its record has no generation, leases and at")
        if self._now() - at > self._max_age:
            raise _Unknown(f"gateway {name}: its record is {self._now() - at:.0f} s old{_FORGET} {name}")
        viewed = record.get("viewed")
        viewed = float(viewed) if isinstance(viewed, int | float) else None
        return _Record(name, routed, release if isinstance(release, str) else None, leases, at, viewed)

    def _trust(self, record: _Record) -> None:
        if record.generation and record.release is None:
            raise _Unknown(f"gateway {record.gateway}: its record does not name its release")
        if record.at - self._now() > _CLOCKS_SECONDS:
            raise _Unknown(f"gateway {record.gateway}: its clock is ahead of ours")

    def _of(self, record: _Record, release: str) -> tuple[ReleaseMember, ReleaseMember]:
        """The versions of a release, which never change."""
        if release in self._members:
            return self._members[release]
        try:
            found = self._registry.release(release)
        except ServiceError as error:
            raise _Unknown(f"gateway {record.gateway}: release {release} cannot be read: {error.message}") from error
        if len(self._members) >= _REMEMBERED:
            self._members.clear()
        self._members[release] = (found.policy, found.reward)
        return self._members[release]


def _oldest_view(records: Sequence[_Record]) -> float | None:
    views = [record.viewed for record in records if record.viewed is not None]
    return min(views) if len(views) == len(records) else None


def _unreadable(error: ServiceError) -> str:
    return f"the gateways' records cannot be read: {error.message}"


def forget_gateway(
    registry: Registry, instance: str, *, by: str, max_age_seconds: float, now: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Take away the record of a gateway that ended without doing so itself; returns the record.

    An old record means *unknown*, never zero: the gateway may be cut off and still at work, and only a person can know
    that it is not. Who says so is written down first, in `status/forgotten-gateway/<instance>.json`.

    Args:
        registry: where the record lies.
        instance: name of the gateway.
        by: who says that it has ended.
        max_age_seconds: a younger record is refused: its gateway is alive.
        now: Unix time.

    Raises:
        InvalidRequest: a name or `by` that can not be one.
        NotFound: there is no such record.
        Conflict: the record is fresh.
        StorageError: it can not be written or removed.
    """
    check_by(by)
    record = _record_or_damaged(registry, instance)
    at, current = record.get("at"), now()
    if isinstance(at, int | float) and current - at <= max_age_seconds:
        raise Conflict(
            f"gateway {instance} wrote its record {max(0.0, current - at):.0f} s ago: it is alive; stop it, or wait "
            f"until the record is {max_age_seconds:g} s old",
            param="instance",
            should_retry=False,
        )
    registry.write_status("forgotten-gateway", instance, {"record": record, "by": by, "at": current})
    registry.remove_status("gateway", instance)
    registry.note(AuditEvent.FORGET_GATEWAY, by=by, what=instance)
    _log.warning("gateway %s is forgotten", instance, extra={"by": by, "record": record})
    return record


def _record_or_damaged(registry: Registry, instance: str) -> dict[str, Any]:
    try:
        return registry.read_status("gateway", instance)
    except VerificationError as error:
        return {"damaged": error.message}  # it holds every version as long as it lies there
