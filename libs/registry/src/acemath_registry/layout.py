"""Where everything is, under one root. Names are checked here again, since each becomes a path, or an object's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from acemath_registry.refs import ModelRef, check_name, check_release_id
from acemath_registry.stores import DISK, Store


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of a registry, and the store that they are names in; touches nothing.

    Attributes:
        root: what is above all of them.
        store: what they lie on.
    """

    root: PurePath
    store: Store = DISK

    @property
    def models(self) -> PurePath:
        """Immutable versions, `<name>/<version>/`."""
        return self.root / "models"

    @property
    def staging(self) -> PurePath:
        """Publishers' private folders, on the same file system as `models`."""
        return self.root / "staging"

    @property
    def releases(self) -> PurePath:
        """Immutable releases, `<release>.json`."""
        return self.root / "releases"

    @property
    def channels(self) -> PurePath:
        """The pointers, `<channel>.json`."""
        return self.root / "channels"

    def version(self, ref: ModelRef) -> PurePath:
        """The directory of a version."""
        return self.models / ref.name / ref.version

    def release(self, release_id: str) -> PurePath:
        """The file of a release."""
        return self.releases / f"{check_release_id(release_id)}.json"

    def channel(self, name: str) -> PurePath:
        """The file of a channel."""
        return self.channels / f"{check_name(name, what='channel name')}.json"

    def channel_lock(self, name: str) -> PurePath:
        """The lock file of those who change a channel."""
        return self.channels / f".{check_name(name, what='channel name')}.lock"

    def gates(self, channel: str) -> PurePath:
        """What a channel asks of a release, `gates/<channel>.json`."""
        return self.root / "gates" / f"{check_name(channel, what='channel name')}.json"

    def bands(self, channel: str) -> PurePath:
        """What is watched on a channel, `bands/<channel>.json`."""
        return self.root / "bands" / f"{check_name(channel, what='channel name')}.json"

    def evaluation(self, *, baseline: str, candidate: str) -> PurePath:
        """The comparison of two releases, `evaluations/<candidate>/<baseline>.json`."""
        return self.root / "evaluations" / check_release_id(candidate) / f"{check_release_id(baseline)}.json"

    @property
    def statuses(self) -> PurePath:
        """What replicas report, `<service>/<instance>.json`."""
        return self.root / "status"

    @property
    def tombstones(self) -> PurePath:
        """Marks of versions that nobody named, `<name>/<version>.json`."""
        return self.root / "tombstones"

    @property
    def audit(self) -> PurePath:
        """Who did what: one JSON object a line."""
        return self.root / "audit.jsonl"

    @property
    def audit_lock(self) -> PurePath:
        """The lock file of those who append to it."""
        return self.root / ".audit.lock"

    def tombstone(self, ref: ModelRef) -> PurePath:
        """The mark of a version."""
        return self.tombstones / ref.name / f"{ref.version}.json"

    def status(self, service: str, instance: str | None = None) -> PurePath:
        """The folder of a service's status files, or the file of one instance."""
        folder = self.statuses / check_name(service, what="service name")
        return folder if instance is None else folder / f"{check_name(instance, what='instance name')}.json"
