"""Removing versions that nobody needs any more, in two steps, so that who is about to need one can still say so.

First a version that nobody names (`references`) and that is neither young nor among the newest of its model is *marked*
(a tombstone). After the grace time, if still nobody names it and nobody reads it, it is *removed*: with the manifest
locked against readers, the references are looked up once more, and one rename takes the directory away. Promoting holds
the same lock from checking the versions to writing the channel, so that one of the two sees the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

from acemath_core.errors import ServiceError
from acemath_registry import audit
from acemath_registry.audit import AuditEvent
from acemath_registry.documents import decode, encode
from acemath_registry.errors import Conflict, NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.files import OWN_NAMES
from acemath_registry.layout import Layout
from acemath_registry.manifest import Manifest
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.references import HISTORY, REPLICAS, is_silent, named_in, named_versions
from acemath_registry.refs import VERSION_PATTERN, ModelRef, check_by
from acemath_registry.status import read_statuses, remove_status
from acemath_registry.stores import Leftover
from acemath_registry.verify import read_manifest

DAY_S: Final = 24 * 3600.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept although nobody names it.

    Attributes:
        newest: versions of each model, by time of publication.
        age_s: what was published, or left by a publisher that was killed, within so many seconds.
        grace_s: seconds from marking to removing.
        history: last releases of each channel.
    """

    newest: int = 3
    age_s: float = DAY_S
    grace_s: float = DAY_S
    history: int = HISTORY

    @property
    def silent_s(self) -> float:
        """Seconds after which a policy agent or reward service that wrote nothing is gone: a day at the least."""
        return max(self.age_s, DAY_S)


class Action(StrEnum):
    """What a collection does with a version."""

    KEEP = "keep"
    MARK = "mark"
    WAIT = "wait"  # it is marked, and goes when the grace time is over
    UNMARK = "unmark"  # it was marked, and somebody names it again
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is done with one version, and why.

    Attributes:
        size: bytes of its files in the registry; 0 when its manifest can not be read.
        done: whether it was done; False for a plan.
    """

    ref: ModelRef
    action: Action
    why: str
    size: int
    done: bool


def collect(
    layout: Layout,
    retention: Retention,
    *,
    by: str,
    apply: bool,
    now: Callable[[], float] = time.time,
    progress: Progress = no_progress,
) -> Iterator[Verdict]:
    """Look at every version and, if `apply`, mark and remove; sorted by name and step.

    Each verdict comes when it is done, and the next version waits until it is taken: who takes no more leaves the rest
    as it is. If `apply`, what publishers and writers left who were killed goes first, once it is older than
    `retention.age_s` (and, of publishers, than a day), and the records of replicas that are gone (`silent_s`).

    Args:
        layout: of the registry.
        retention: what is kept although nobody names it.
        by: who removes, for the audit log.
        apply: do it; else it is only a plan.
        now: Unix time.
        progress: hears how many of the versions were looked at, then of how many it was decided; not of bytes.

    Raises:
        InvalidRequest: `by` can not be one.
        VerificationError: a document that may name versions is damaged: nothing was done.
        LockTimeout: another collection runs.
        StorageError: something can not be read, written or removed; what was done before stays done.
    """
    check_by(by)
    with storage_errors("collecting unused versions"):
        if not apply:
            planned = _Collection(layout, retention, by, now, progress)
            yield from planned.each(planned.verdict, "planning")
            return
        with layout.store.alone(layout.tombstones / ".lock"):
            layout.store.sweep(layout.root, layout.staging, retention.age_s)
            _remove_silent(layout, now() - retention.silent_s)
            collection = _Collection(layout, retention, by, now, progress)
            yield from collection.each(lambda ref: collection.act(collection.verdict(ref)), "collecting")


def leftovers(layout: Layout, retention: Retention) -> list[Leftover]:
    """What publishers left that were killed, and until when it stays. Raises StorageError."""
    with storage_errors("listing what publishers left"):
        return layout.store.leftovers(layout.root, layout.staging, retention.age_s)


def withdraw_tombstone(layout: Layout, ref: ModelRef, *, by: str, why: str) -> None:
    """Take a mark away, if there is one.

    Raises:
        Conflict: the version is being removed.
        OSError: it can not be removed.
    """
    if layout.store.unmark(layout.tombstone(ref)):
        audit.record(layout, AuditEvent.UNMARK, by=by, what=str(ref), why=why)


class _Collection:
    """What one look found; a version that is published after it is the next collection's.

    Attributes:
        refs: the versions, sorted by name and step.
    """

    def __init__(
        self, layout: Layout, retention: Retention, by: str, now: Callable[[], float], progress: Progress
    ) -> None:
        self._layout, self._retention, self._by, self._now = layout, retention, by, now
        self._progress = progress
        self._named = self._names()
        self.refs = list_versions(layout)
        self._manifests = dict(self.each(lambda ref: (ref, _manifest(layout, ref)), "reading manifests"))
        self._newest = self._newest_of_each()

    def _names(self) -> dict[ModelRef, str]:
        heard_since = self._now() - self._retention.silent_s
        return named_versions(self._layout, self._retention.history, heard_since)

    def each(self, look: Callable[[ModelRef], T], phase: str) -> Iterator[T]:
        advance = counter(self._progress, phase, len(self.refs))
        for ref in self.refs:
            yield look(ref)
            advance(1)

    def _newest_of_each(self) -> frozenset[ModelRef]:
        by_name: dict[str, list[Manifest]] = {}
        for manifest in self._manifests.values():
            if isinstance(manifest, Manifest):
                by_name.setdefault(manifest.name, []).append(manifest)
        kept = [
            sorted(found, key=lambda one: one.created_at, reverse=True)[: self._retention.newest]
            for found in by_name.values()
        ]
        return frozenset(manifest.ref for found in kept for manifest in found)

    def verdict(self, ref: ModelRef) -> Verdict:
        manifest = self._manifests[ref]
        size = manifest.stored_size if isinstance(manifest, Manifest) else 0
        marked = _marked_at(self._layout, ref)
        why = self._why_kept(ref, manifest)
        if why is not None:
            return Verdict(ref, Action.KEEP if marked is None else Action.UNMARK, why, size, done=False)
        if marked is None:
            return Verdict(ref, Action.MARK, "nobody names it", size, done=False)
        left = marked + self._retention.grace_s - self._now()
        if left > 0:
            return Verdict(ref, Action.WAIT, f"marked; {left / 3600:.1f} h of grace are left", size, done=False)
        return Verdict(ref, Action.REMOVE, "nobody has named it since it was marked", size, done=False)

    def _why_kept(self, ref: ModelRef, manifest: Manifest | str) -> str | None:
        if ref in self._named:
            return self._named[ref]
        if isinstance(manifest, str):
            return f"its manifest can not be read ({manifest}); remove it by hand"
        age = self._now() - manifest.created_at.timestamp()
        if age < self._retention.age_s:
            return f"published {max(0.0, age) / 3600:.1f} h ago"
        if ref in self._newest:
            return f"among the newest {self._retention.newest} of {ref.name}"
        return None

    def act(self, verdict: Verdict) -> Verdict:
        try:
            return self._act(verdict)
        except Conflict as error:  # where there are no locks: somebody else is at work on it
            return replace(verdict, action=Action.WAIT, why=error.message, done=True)

    def _act(self, verdict: Verdict) -> Verdict:
        ref = verdict.ref
        if verdict.action is Action.MARK:
            mark = encode({"at": self._now(), "by": self._by, "why": verdict.why})
            self._layout.store.create(self._layout.tombstone(ref), mark)
            audit.record(self._layout, AuditEvent.MARK, by=self._by, what=str(ref), why=verdict.why)
        elif verdict.action is Action.UNMARK:
            withdraw_tombstone(self._layout, ref, by=self._by, why=verdict.why)
        elif verdict.action is Action.REMOVE:
            kept = self._remove(ref)
            if kept is not None:
                return replace(verdict, action=Action.WAIT, why=kept, done=True)
        return replace(verdict, done=True)

    def _remove(self, ref: ModelRef) -> str | None:
        """Remove it; or why it stays."""
        layout = self._layout
        with layout.store.removing(layout.version(ref), layout.tombstone(ref), layout.staging) as removal:
            if removal.refused is not None:
                return removal.refused
            # From here on nobody can promote it: who does holds the lock, or finds it gone.
            who = self._names().get(ref)
            if who is not None:
                return who
            if _marked_at(layout, ref) is None:
                return "its mark was withdrawn"
            removal.go()
        audit.record(layout, AuditEvent.REMOVE, by=self._by, what=str(ref))
        removal.clean()
        return None


def list_versions(layout: Layout) -> list[ModelRef]:
    """Every version, sorted by name and step."""
    found = layout.store.versions(layout.models)
    refs = [ModelRef(name, version) for name, version in found if VERSION_PATTERN.fullmatch(version)]
    return sorted(refs, key=lambda ref: (ref.name, ref.step, ref.version))


def _remove_silent(layout: Layout, heard_since: float) -> None:
    """Take away the records of replicas that are gone: one with a name of its own leaves one each time it starts.

    What one says of versions that are still there stays: that it reproduced a canary is what a gate may ask.
    """
    silent = [
        (service, instance, document)
        for service in REPLICAS
        for instance, document in read_statuses(layout, service).items()
        if is_silent(service, document, heard_since)
    ]
    there = {str(ref) for ref in list_versions(layout)} if silent else set[str]()
    for service, instance, document in silent:
        if there.isdisjoint(map(str, named_in(document))):
            with suppress(NotFound):
                remove_status(layout, service, instance)


def _manifest(layout: Layout, ref: ModelRef) -> Manifest | str:
    try:
        with layout.store.opened(layout.version(ref), OWN_NAMES) as directory:
            return read_manifest(ref, directory)
    except ServiceError as error:
        return error.message


def _marked_at(layout: Layout, ref: ModelRef) -> float | None:
    """Unix time at which it was marked; None when it is not."""
    path = layout.tombstone(ref)
    try:
        data = layout.store.read(path)
    except FileNotFoundError:
        return None
    document: dict[str, Any] = decode(data, file=path.name, reason=RejectReason.TOMBSTONE_MALFORMED)
    at = document.get("at")
    if not isinstance(at, int | float):
        raise VerificationError(RejectReason.TOMBSTONE_MALFORMED, "says no time; remove it, then again", file=path.name)
    return float(at)
