"""Where everything is, under one root. Names are checked here again, since each becomes a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acemath_registry.refs import ModelRef, check_name, check_release_id


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of a registry; touches no disk."""

    root: Path

    @property
    def models(self) -> Path:
        """Immutable versions, `<name>/<version>/`."""
        return self.root / "models"

    @property
    def staging(self) -> Path:
        """Publishers' private folders, on the same file system as `models`."""
        return self.root / "staging"

    @property
    def releases(self) -> Path:
        """Immutable releases, `<release>.json`."""
        return self.root / "releases"

    @property
    def channels(self) -> Path:
        """The pointers, `<channel>.json`."""
        return self.root / "channels"

    def version(self, ref: ModelRef) -> Path:
        """The directory of a version."""
        return self.models / ref.name / ref.version

    def release(self, release_id: str) -> Path:
        """The file of a release."""
        return self.releases / f"{check_release_id(release_id)}.json"

    def channel(self, name: str) -> Path:
        """The file of a channel."""
        return self.channels / f"{check_name(name, what='channel name')}.json"

    def channel_lock(self, name: str) -> Path:
        """The lock file of those who change a channel."""
        return self.channels / f".{check_name(name, what='channel name')}.lock"

    def gates(self, channel: str) -> Path:
        """What a channel asks of a release, `gates/<channel>.json`."""
        return self.root / "gates" / f"{check_name(channel, what='channel name')}.json"

    def bands(self, channel: str) -> Path:
        """What is watched on a channel, `bands/<channel>.json`."""
        return self.root / "bands" / f"{check_name(channel, what='channel name')}.json"

    def evaluation(self, *, baseline: str, candidate: str) -> Path:
        """The comparison of two releases, `evaluations/<candidate>/<baseline>.json`."""
        return self.root / "evaluations" / check_release_id(candidate) / f"{check_release_id(baseline)}.json"

    @property
    def statuses(self) -> Path:
        """What replicas report, `<service>/<instance>.json`."""
        return self.root / "status"

    @property
    def tombstones(self) -> Path:
        """Marks of versions that nobody named, `<name>/<version>.json`."""
        return self.root / "tombstones"

    @property
    def audit(self) -> Path:
        """Who did what: one JSON object a line."""
        return self.root / "audit.jsonl"

    @property
    def audit_lock(self) -> Path:
        """The lock file of those who append to it."""
        return self.root / ".audit.lock"

    def tombstone(self, ref: ModelRef) -> Path:
        """The mark of a version."""
        return self.tombstones / ref.name / f"{ref.version}.json"

    def status(self, service: str, instance: str | None = None) -> Path:
        """The folder of a service's status files, or the file of one instance."""
        folder = self.statuses / check_name(service, what="service name")
        return folder if instance is None else folder / f"{check_name(instance, what='instance name')}.json"
