"""Releases (one policy and one reward version, immutable) and channels (the pointer, changed by compare-and-set).

A reader follows channel → release → two versions, each link checked by a sha256; it never lists a directory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acemath_registry.audit import AuditEvent, record
from acemath_registry.channels import Channel, current_channel, decoded
from acemath_registry.documents import decode, encode, sha256_hex
from acemath_registry.errors import Conflict, NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.layout import Layout
from acemath_registry.manifest import ModelKind
from acemath_registry.members import manifest_digest, members_kept
from acemath_registry.refs import ModelRef, check_by
from acemath_registry.stores import Overtaken


class ReleaseMember(BaseModel):
    """One version in a release, with the sha256 of its manifest's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def ref(self) -> ModelRef:
        """The version."""
        return ModelRef(self.name, self.version)


class Release(BaseModel):
    """A policy and a reward version that belong together; its id is made from its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ReleaseMember
    reward: ReleaseMember

    @property
    def sha256(self) -> str:
        """The sha256 of the release's file."""
        return sha256_hex(self.encoded())

    @property
    def id(self) -> str:
        """`r-` and the first 12 hex digits of `sha256`."""
        return f"r-{self.sha256[:12]}"

    def member(self, kind: ModelKind) -> ReleaseMember:
        """The policy or the reward version."""
        return self.policy if kind is ModelKind.POLICY else self.reward

    def encoded(self) -> bytes:
        """The bytes of the release's file."""
        return encode(self.model_dump(mode="json"))


def create_release(layout: Layout, policy: ModelRef, reward: ModelRef) -> Release:
    """Write the release of these two versions; the same two give the same release and change nothing.

    Raises:
        NotFound: a version is not in the registry.
        VerificationError: a manifest is damaged, or a version is not of its kind.
        StorageError: it can not be written.
    """
    release = Release(
        policy=_member(layout, policy, ModelKind.POLICY), reward=_member(layout, reward, ModelKind.REWARD)
    )
    try:
        return read_release(layout, release.id)
    except (NotFound, VerificationError):  # a damaged file of this id can only be meant to hold these bytes
        with storage_errors(f"writing release {release.id}"):
            layout.store.replace(layout.release(release.id), release.encoded())
    return release


def read_release(layout: Layout, release_id: str, *, sha256: str | None = None) -> Release:
    """The release of this id, its bytes checked against the id and, if given, against `sha256`.

    Raises:
        InvalidRequest: not a release id.
        NotFound: no such release.
        VerificationError: RELEASE_EDITED.
        StorageError: it can not be read.
    """
    path = layout.release(release_id)
    with storage_errors(f"reading release {release_id}"):
        try:
            data = layout.store.read(path)
        except FileNotFoundError as error:
            raise NotFound(
                f"release {release_id} is not in the registry; create it from two versions", param="release"
            ) from error
    digest = sha256_hex(data)
    if f"r-{digest[:12]}" != release_id or digest != (sha256 or digest):
        raise VerificationError(
            RejectReason.RELEASE_EDITED, "does not have the bytes it was written with; create it again", file=path.name
        )
    document = decode(data, file=path.name, reason=RejectReason.RELEASE_EDITED)
    try:
        return Release.model_validate(document)
    except ValidationError as error:
        raise VerificationError(
            RejectReason.RELEASE_EDITED, "is not a release of this schema; create it again", file=path.name
        ) from error


def read_channel(layout: Layout, name: str) -> Channel:
    """Where the channel points, after the release it names was found with the digest it names.

    Raises:
        InvalidRequest: `name` can not be a channel's name.
        NotFound: nothing was promoted on it yet.
        VerificationError: the channel is malformed, or its release was edited.
        StorageError: it can not be read.
    """
    channel = existing(name, current_channel(layout, name))
    read_release(layout, channel.release, sha256=channel.release_sha256)
    return channel


_Target = Callable[[Channel | None], str]
_Next = Callable[[Channel | None, Release], Channel]
_TRIES = 8  # of a change that others overtake, where the store has no locks
Gatekeeper = Callable[[Channel | None, Release], None]
"""Raises when the channel may not go from this state to this release; asked under the channel's lock."""


def promote(
    layout: Layout, name: str, release_id: str, *, expected_generation: int | None, by: str, gatekeeper: Gatekeeper
) -> Channel:
    """Point the channel at a release, if its generation still is the expected one.

    Promoting the release that is already current changes nothing, the generation neither.

    Args:
        layout: of the registry.
        name: of the channel.
        release_id: what to point at.
        expected_generation: what the caller saw; 0 for "no such channel yet", None for "whatever it is".
        by: who asks, for the record.
        gatekeeper: asked before the change; what it raises is raised, and nothing is changed.

    Raises:
        InvalidRequest: a name or `by` that can not be one.
        NotFound: the release or a version of it is not in the registry.
        Conflict: the generation is another one; nothing was changed.
        VerificationError: the release or a manifest was edited.
        LockTimeout, StorageError: it can not be written now.
    """

    def target(current: Channel | None) -> str:
        check_generation(name, current, expected_generation)
        return release_id

    def change() -> tuple[Channel | None, Channel]:
        return change_once(layout, name, target, partial(_next, by=by), gatekeeper)

    return _change(layout, name, AuditEvent.PROMOTE, by, change, None)


def rollback(layout: Layout, name: str, *, expected_generation: int | None, by: str, why: str | None = None) -> Channel:
    """Promote the release that was current before this one; `why` is for the audit log.

    Raises:
        NotFound: the channel does not exist.
        Conflict: there is no previous release, or the generation is another one.
        InvalidRequest, VerificationError, LockTimeout, StorageError: as `promote`.
    """

    def target(current: Channel | None) -> str:
        found = existing(name, current)
        check_generation(name, found, expected_generation)
        if found.previous is None:
            raise Conflict(f"channel {name!r} has no release before {found.release}; promote one", should_retry=False)
        return found.previous

    def change() -> tuple[Channel | None, Channel]:
        return change_once(layout, name, target, partial(_next, by=by), lambda current, release: None)

    return _change(layout, name, AuditEvent.ROLLBACK, by, change, why)


def _change(
    layout: Layout,
    name: str,
    event: AuditEvent,
    by: str,
    change: Callable[[], tuple[Channel | None, Channel]],
    why: str | None,
) -> Channel:
    check_by(by)
    current, changed = retried(change)
    if changed != current:
        before, after, generation = changed.previous, changed.release, changed.generation
        if current is not None and current.canary is not None:
            ended = f"the share of {current.canary.release} ends"
            why = ended if why is None else f"{why}; {ended}"
        record(layout, event, by=by, what=name, before=before, after=after, generation=generation, why=why)
    return changed


def retried(change: Callable[[], tuple[Channel | None, Channel]]) -> tuple[Channel | None, Channel]:
    """What the channel said, and what it says now; a change that another overtook is tried again from the start."""
    for _ in range(_TRIES - 1):
        with suppress(Overtaken):  # only where there are no locks
            return change()
    return change()


def change_once(
    layout: Layout, name: str, target: _Target, following: _Next, gatekeeper: Gatekeeper
) -> tuple[Channel | None, Channel]:
    """What the channel said, and what it says now.

    Args:
        layout: of the registry.
        name: of the channel.
        target: the release that the change names; raises when there is to be none.
        following: what the channel says next; the same again changes nothing, and is not asked of the gatekeeper.
        gatekeeper: asked before the change.

    Raises:
        Overtaken: another change came in between, where the store has no locks.
    """
    path = layout.channel(name)
    with storage_errors(f"changing channel {name}"), layout.store.changing(path, layout.channel_lock(name)) as change:
        data = change.read()
        current = None if data is None else decoded(data, path.name)
        release = read_release(layout, target(current))
        with members_kept(
            layout, release.id, {one.ref: one.manifest_sha256 for one in (release.policy, release.reward)}
        ):
            changed = following(current, release)
            if current is not None and changed == current:
                return current, current
            gatekeeper(current, release)
            change.write(changed.encoded())
    return current, changed


def check_generation(name: str, current: Channel | None, expected: int | None) -> None:
    """Raises Conflict unless the channel is at the expected generation, or none is expected."""
    generation, at = (current.generation, current.release) if current else (0, "no release")
    if expected is not None and expected != generation:
        raise Conflict(
            f"channel {name!r} is at generation {generation} ({at}), not {expected}; read it again, then decide",
            param="expected_generation",
            should_retry=False,
        )


def existing(name: str, channel: Channel | None) -> Channel:
    """The channel; raises NotFound when nothing was promoted on it yet."""
    if channel is None:
        raise NotFound(f"channel {name!r} does not exist; promote a release on it first", param="channel")
    return channel


def _next(current: Channel | None, release: Release, by: str) -> Channel:
    """The release is current, and nothing has a share beside it."""
    if current is not None and current.release_sha256 == release.sha256:
        return current
    return Channel(
        release=release.id,
        release_sha256=release.sha256,
        generation=current.generation + 1 if current else 1,
        previous=current.release if current else None,
        by=by,
        at=datetime.now(UTC),
    )


def _member(layout: Layout, ref: ModelRef, kind: ModelKind) -> ReleaseMember:
    return ReleaseMember(name=ref.name, version=ref.version, manifest_sha256=manifest_digest(layout, ref, kind))
