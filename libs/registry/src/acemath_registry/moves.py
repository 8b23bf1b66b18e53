"""Where a channel points is changed by compare-and-set: to a release, to the same one anew, or back.

Where the store has no locks, another change may come between the look and the write. Then it is tried again, and never
goes to another release than the one that it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from acemath_registry.audit import AuditEvent, record
from acemath_registry.channels import Channel, decoded
from acemath_registry.errors import Conflict, storage_errors
from acemath_registry.layout import Layout
from acemath_registry.members import members_kept
from acemath_registry.refs import check_by, check_channel_name, check_reason
from acemath_registry.releases import Release, existing, read_release
from acemath_registry.served import stands
from acemath_registry.stores import Overtaken
from acemath_registry.way_back import WayBack

_AGAIN = "again: what replicas rejected before was let pass"
_TRIES = 8  # of a change that others overtake, where the store has no locks
_Target = Callable[[Channel | None], str]
_Next = Callable[[Channel | None, Release], Channel]
_Before = Callable[[Channel, Release], str]
Gatekeeper = Callable[[Channel | None, Release], None]
"""Raises when the channel may not go from this state to this release; asked under the channel's lock."""


@dataclass(frozen=True, slots=True)
class Move:
    """One change of a channel, or none.

    Attributes:
        before: what the channel said; None when it did not exist.
        after: what it says now.
    """

    before: Channel | None
    after: Channel

    @property
    def changed(self) -> bool:
        """Whether there is a new generation."""
        return self.after != self.before


@dataclass(frozen=True, slots=True)
class _Said:
    """What the audit log says of a change.

    Attributes:
        also: what it did besides, where it went to another release.
    """

    event: AuditEvent
    by: str
    why: str | None
    also: str | None = None


def promote(
    layout: Layout,
    name: str,
    release_id: str,
    *,
    expected_generation: int | None,
    by: str,
    gatekeeper: Gatekeeper,
    why: str | None = None,
    again: bool = False,
) -> Move:
    """Point the channel at a release, if its generation still is the expected one.

    Promoting the release that is already current changes nothing, the generation neither, unless it is to be `again`.

    Args:
        layout: of the registry.
        name: of the channel.
        release_id: what to point at.
        expected_generation: what the caller saw; 0 for "no such channel yet", None for "whatever it is".
        by: who asks, for the record.
        gatekeeper: asked before the change; what it raises is raised, and nothing is changed.
        why: for the audit log.
        again: give the release that is current a new generation, so that replicas try once more what they rejected; the
            way back and a share beside it stay what they were.

    Raises:
        InvalidRequest: a name, `by` or `why` that can not be one.
        NotFound: the release or a version of it is not in the registry.
        Conflict: the generation is another one; nothing was changed.
        VerificationError: the release or a manifest was edited.
        LockTimeout, StorageError: it can not be written now.
    """

    def target(current: Channel | None) -> str:
        if current is None:
            check_channel_name(name)
        check_generation(name, current, expected_generation)
        return release_id

    following = partial(_anew if again else _next, by=by, before=partial(_before, layout, name))
    said = _Said(AuditEvent.PROMOTE, by, why, _AGAIN if again else None)
    return _change(layout, name, said, target, following, gatekeeper)


def rollback(
    layout: Layout,
    name: str,
    *,
    expected_generation: int | None,
    by: str,
    why: str | None = None,
    expected_release: str | None = None,
    once: bool = False,
) -> Move:
    """Promote the release that was served before this one.

    Args:
        layout: of the registry.
        name: of the channel.
        expected_generation: what the caller saw; None for "whatever it is".
        by: who asks, for the record.
        why: for the audit log.
        expected_release: id of the release that is to go; None for "whatever is current".
        once: unless one of the two is expected, do not undo a rollback.

    Raises:
        NotFound: the channel does not exist.
        Conflict: there is no previous release, the generation or the release is another one, somebody else moved the
            channel meanwhile, or a rollback would be undone.
        InvalidRequest, VerificationError, LockTimeout, StorageError: as `promote`.
    """
    way = WayBack(name, expected_release, once=once and expected_generation is None)

    def target(current: Channel | None) -> str:
        found = existing(name, current)
        check_generation(name, found, expected_generation)
        return way.target(found)

    said = _Said(AuditEvent.ROLLBACK, by, why)
    return _change(layout, name, said, target, partial(_back, by=by, before=_current), lambda *_: None)


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


def _change(
    layout: Layout,
    name: str,
    said: _Said,
    target: _Target,
    following: _Next,
    gatekeeper: Gatekeeper,
) -> Move:
    check_by(said.by)
    if said.why is not None:
        check_reason(said.why)
    move = Move(*retried(lambda: change_once(layout, name, target, following, gatekeeper)))
    if move.changed:
        _record(layout, name, said, move)
    return move


def _record(layout: Layout, name: str, said: _Said, move: Move) -> None:
    current, changed = move.before, move.after
    before = None if current is None else current.release
    event, parts = said.event, [said.why]
    if before == changed.release:
        event = AuditEvent.PROMOTE_AGAIN
    else:
        parts.append(said.also)
        if current is not None and current.canary is not None:
            parts.append(f"the share of {current.canary.release} ends")
    record(
        layout, event, by=said.by, what=name, before=before, after=changed.release, generation=changed.generation,
        why="; ".join(part for part in parts if part) or None,
    )  # fmt: skip


def _current(current: Channel, release: Release) -> str:
    return current.release


def _before(layout: Layout, name: str, current: Channel, release: Release) -> str:
    """What a rollback from the release would go to: what gateways serve, where they say so.

    What the channel names now may be what replicas rejected; a rollback to it would end nothing.
    """
    now = stands(layout, name, current)
    if now != release.id:
        return now
    previous = current.previous
    return current.release if previous is None or previous == release.id else previous


def _next(current: Channel | None, release: Release, by: str, before: _Before) -> Channel:
    """The release is current, and nothing has a share beside it."""
    if current is not None and current.release_sha256 == release.sha256:
        return current
    return Channel(
        release=release.id,
        release_sha256=release.sha256,
        generation=current.generation + 1 if current else 1,
        previous=before(current, release) if current else None,
        by=by,
        at=datetime.now(UTC),
    )


def _anew(current: Channel | None, release: Release, by: str, before: _Before) -> Channel:
    """As `_next`, and the release that is current gets a generation more."""
    if current is None or current.release_sha256 != release.sha256:
        return _next(current, release, by, before)
    # Its time is the new one: what was rejected comes only now, and the watch looks at a release's first hours.
    changes = {"generation": current.generation + 1, "by": by, "at": datetime.now(UTC)}
    return current.model_copy(update=changes)


def _back(current: Channel | None, release: Release, by: str, before: _Before) -> Channel:
    return _next(current, release, by, before).model_copy(update={"rollback": True})
