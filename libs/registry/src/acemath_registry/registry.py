"""The registry as one object; every method blocks on the disk, so call it from a thread in an async service."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from acemath_core.comparison import Comparison
from acemath_registry import (
    audit,
    bands,
    cache,
    canaries,
    collect,
    evaluations,
    gatekeeping,
    gates,
    hub,
    moves,
    publish,
    reading,
    releases,
    served,
    signed,
    status,
    verify,
)
from acemath_registry.adapters.publish import publish_adapter
from acemath_registry.audit import AuditEntry, AuditEvent
from acemath_registry.bands import Bands
from acemath_registry.channels import Channel
from acemath_registry.collect import Retention, Verdict
from acemath_registry.errors import InvalidRequest, storage_errors
from acemath_registry.evaluations import Attached
from acemath_registry.files import OWN_NAMES
from acemath_registry.gates import Gates, Refusal
from acemath_registry.hub import HubCheckpoint
from acemath_registry.layout import Layout
from acemath_registry.manifest import Manifest, ModelKind, PublishMetadata
from acemath_registry.moves import Move
from acemath_registry.progress import Progress, no_progress
from acemath_registry.refs import ModelRef, check_by
from acemath_registry.releases import Release
from acemath_registry.served import Served
from acemath_registry.signing import SigningKey, TrustedKeys
from acemath_registry.stores import Leftover, place_of


class Registry:
    """Model versions, releases and channels under one directory, which may be a mount that many hosts share, or in a
    bucket of an object store.

    Making one touches nothing; a reader never needs to write.

    Args:
        root: the registry's directory, which the first publish makes, or `s3://bucket/prefix`.
        trusted: keys, one of which must have signed a version whose manifest or files are asked for; None asks no
            signature.
    """

    def __init__(self, root: Path | str, *, trusted: TrustedKeys | None = None) -> None:
        self.address, self._trusted = str(root), trusted
        self._layout = Layout(*place_of(root))

    @property
    def root(self) -> Path:
        """The registry's directory.

        Raises:
            InvalidRequest: it is on an object store.
        """
        return self._on_disk(self._layout.root)

    def exists(self) -> bool:
        """Whether anything was ever written there. Raises NotFound (no such bucket), StorageError."""
        with storage_errors(f"looking for the registry {self.address}"):
            return self._layout.store.exists(self._layout.root)

    def _on_disk(self, path: PurePath) -> Path:
        if not isinstance(path, Path):
            raise InvalidRequest(f"{self.address} is on an object store and has no directory here; ask for a copy")
        return path

    def publish(
        self,
        source_dir: Path | str,
        *,
        name: str,
        kind: ModelKind | str,
        metadata: PublishMetadata,
        adapter_of: ModelRef | None = None,
        by: str | None = None,
        signer: SigningKey | None = None,
        progress: Progress = no_progress,
    ) -> ModelRef:
        """Publish a checkpoint directory; the same content gives the same version. See `publish.publish` for errors.

        With `adapter_of` the directory holds an adapter on that version: see `publish_adapter`.
        With a `signer` the version is signed, also one that is published already: `signed.ensure_signed`.
        """
        publish.check_wish(name, kind)
        who = _publisher(by)
        if not str(source_dir):
            raise InvalidRequest("the source is empty; give the folder of a checkpoint", param="source")
        source = Path(source_dir)
        publishing = publish.publish if adapter_of is None else partial(publish_adapter, base=adapter_of)
        ref = publishing(
            self._layout, source, name=name, kind=ModelKind(kind), metadata=metadata, by=who, signer=signer,
            progress=progress,
        )  # fmt: skip
        if signer is not None:
            signed.ensure_signed(self._layout, ref, signer, metadata, by=who)
        return ref

    def sign(self, ref: ModelRef, key: SigningKey, *, by: str, progress: Progress = no_progress) -> str | None:
        """Sign a version that is published already: the key whose signature it replaces. See `signed.sign_version`."""
        return signed.sign_version(self._layout, ref, key, by=by, progress=progress)

    def publish_from_hub(
        self,
        source: str,
        *,
        name: str,
        kind: ModelKind | str,
        describe: Callable[[HubCheckpoint], PublishMetadata],
        by: str | None = None,
        signer: SigningKey | None = None,
        progress: Progress = no_progress,
        endpoint: str | None = None,
    ) -> ModelRef:
        """Publish a model of the Hugging Face Hub; see `hub.download` and `publish` for arguments and errors.

        Args:
            source: `hf://owner/name@revision`.
            describe: makes the manifest's part that only a publisher knows, of what was downloaded; asked before the
                download, too, so that what it refuses costs none.
        """
        publish.check_wish(name, kind)
        _publisher(by)
        staging = self._layout.store.staging(self._layout.staging)
        with storage_errors(f"downloading {source}"), staging as folder:
            checkpoint = hub.download(source, folder, progress, endpoint=endpoint, accept=describe)
            metadata = describe(checkpoint)
            return self.publish(
                folder, name=name, kind=kind, metadata=metadata, by=by, signer=signer, progress=progress
            )

    def path(self, ref: ModelRef) -> Path:
        """The directory of a version in the registry; not checked to exist. Load from `private_copy` instead.

        Raises:
            InvalidRequest: the registry is on an object store.
        """
        return self._on_disk(self._layout.version(ref))

    def where(self, ref: ModelRef) -> str:
        """The address of a version, for people; not checked to exist."""
        path = self._layout.version(ref)
        return str(path) if isinstance(path, Path) else f"{self.address.rstrip('/')}/models/{ref.name}/{ref.version}"

    def opened(self, ref: ModelRef, names: Collection[str]) -> AbstractContextManager[Path]:
        """A directory with those of the small files `names` that a version has; see `reading.opened` for errors."""
        return reading.opened(self._layout, ref, names)

    def manifest(
        self, ref: ModelRef, directory: Path | str | None = None, *, manifest_sha256: str | None = None
    ) -> Manifest:
        """The manifest of a version, or of a copy of it in `directory`; see `verify.read_manifest` for errors."""
        where = self.opened(ref, OWN_NAMES) if directory is None else nullcontext(Path(directory))
        with where as found:
            return verify.read_manifest(ref, found, manifest_sha256=manifest_sha256, trusted=self._trusted)

    def verify(
        self,
        ref: ModelRef,
        directory: Path | str | None = None,
        *,
        manifest_sha256: str | None = None,
        progress: Progress = no_progress,
    ) -> Manifest:
        """Check every byte of a version, in the registry or in a copy of it in `directory`, and that all its weights
        are finite. See `reading.verify_version` for arguments and errors.
        """
        copy = None if directory is None else Path(directory)
        return reading.verify_version(
            self._layout, ref, copy, manifest_sha256=manifest_sha256, trusted=self._trusted, progress=progress
        )

    def private_copy(
        self,
        ref: ModelRef,
        cache_dir: Path | str,
        *,
        manifest_sha256: str | None = None,
        progress: Progress = no_progress,
    ) -> Path:
        """The directory of a verified copy of a version below `cache_dir`. See `cache.private_copy` for errors."""
        return cache.private_copy(
            ref, self._layout.version(ref), Path(cache_dir), store=self._layout.store,
            manifest_sha256=manifest_sha256, trusted=self._trusted, progress=progress,
        )  # fmt: skip

    def create_release(self, policy: ModelRef, reward: ModelRef) -> Release:
        """Pair a policy and a reward version. See `releases.create_release` for errors."""
        return releases.create_release(self._layout, policy, reward)

    def release(self, release_id: str) -> Release:
        """A release, its bytes checked against its id. See `releases.read_release` for errors."""
        return releases.read_release(self._layout, release_id)

    def promote(
        self,
        channel: str,
        release_id: str,
        *,
        expected_generation: int | None,
        by: str,
        override: str | None = None,
        again: bool = False,
    ) -> Channel:
        """Point a channel at a release; see `move`."""
        return self.move(
            channel, release_id, expected_generation=expected_generation, by=by, override=override, again=again
        ).after

    def move(
        self,
        channel: str,
        release_id: str,
        *,
        expected_generation: int | None,
        by: str,
        override: str | None = None,
        why: str | None = None,
        again: bool = False,
    ) -> Move:
        """Point a channel at a release by compare-and-set, if the channel's gates let it.

        Args:
            channel: its name.
            release_id: what to point at.
            expected_generation: what the caller saw; see `moves.promote`, also for further errors.
            by: who asks.
            override: the reason to promote what a gate refuses; it is written into the audit log first.
            why: for the audit log; None for what `override` says.
            again: let replicas try once more what they rejected, also where the release is current.

        Raises:
            GateRefused: a gate refuses; nothing was changed.
        """
        keeper = gatekeeping.gatekeeper(self._layout, channel, by=by, override=override, again=again)
        return moves.promote(
            self._layout, channel, release_id, expected_generation=expected_generation, by=by, gatekeeper=keeper,
            why=override if why is None else why, again=again,
        )  # fmt: skip

    def gates(self, channel: str) -> Gates:
        """What a channel asks of a release. See `gates.read_gates` for errors."""
        return gates.read_gates(self._layout, channel)

    def set_gates(self, channel: str, asked: Gates, *, by: str) -> None:
        """Declare what a channel asks. See `gatekeeping.set_gates` for errors."""
        gatekeeping.set_gates(self._layout, channel, asked, by=by)

    def ask_gates(self, channel: str, release_id: str) -> tuple[Refusal, ...]:
        """Why a channel's gates would refuse a release now. See `gatekeeping.ask` for errors."""
        return gatekeeping.ask(self._layout, channel, release_id)

    def attach_evaluation(self, comparison: Comparison, *, by: str) -> Attached:
        """Bind a comparison to its two releases, for gates. See `evaluations.attach_evaluation` for errors."""
        return evaluations.attach_evaluation(self._layout, comparison, by=by)

    def rollback(
        self,
        channel: str,
        *,
        by: str,
        expected_generation: int | None = None,
        why: str | None = None,
        expected_release: str | None = None,
        once: bool = False,
    ) -> Channel:
        """Promote a channel's previous release. See `moves.rollback` for arguments and errors."""
        return moves.rollback(
            self._layout, channel, expected_generation=expected_generation, by=by, why=why,
            expected_release=expected_release, once=once,
        ).after  # fmt: skip

    def canary(
        self,
        channel: str,
        release_id: str,
        share: float,
        *,
        by: str,
        expected_generation: int | None = None,
        override: str | None = None,
        why: str | None = None,
        again: bool = False,
    ) -> Channel:
        """Give a release a share of a channel's requests; see `canaries.begin_canary`, and `move` for the gates."""
        keeper = gatekeeping.gatekeeper(self._layout, channel, by=by, override=override, again=again, share=True)
        return canaries.begin_canary(
            self._layout, channel, release_id, share, expected_generation=expected_generation, by=by,
            gatekeeper=keeper, why=override if why is None else why, again=again,
        )  # fmt: skip

    def canary_release(self, channel: Channel) -> Release | None:
        """The release that has a share beside the current one. See `releases.read_release` for errors."""
        canary = channel.canary
        if canary is None:
            return None
        return releases.read_release(self._layout, canary.release, sha256=canary.release_sha256)

    def stop_canary(
        self, channel: str, *, by: str, expected_generation: int | None = None, why: str | None = None
    ) -> Channel:
        """Take the share away. See `canaries.stop_canary` for errors."""
        return canaries.stop_canary(self._layout, channel, expected_generation=expected_generation, by=by, why=why)

    def bands(self, channel: str) -> Bands:
        """What is watched on a channel. See `bands.read_bands` for errors."""
        return bands.read_bands(self._layout, channel)

    def set_bands(self, channel: str, watched: Bands, *, by: str) -> None:
        """Declare what is watched on a channel. See `bands.set_bands` for errors."""
        bands.set_bands(self._layout, channel, watched, by=by)

    def channel(self, name: str) -> Channel:
        """Where a channel points. See `releases.read_channel` for errors; NotFound before the first promotion."""
        return releases.read_channel(self._layout, name)

    def channel_mark(self, name: str) -> Hashable | None:
        """Another value after each change of a channel; cheap to ask for. None when it can not be told.

        Raises:
            StorageError: a store does not answer, or refuses.
        """
        return self._layout.store.mark(self._layout.channel(name))

    def write_status(self, service: str, instance: str, document: dict[str, Any]) -> None:
        """Replace what an instance reports. Raises InvalidRequest, StorageError."""
        status.write_status(self._layout, service, instance, document)

    def read_status(self, service: str, instance: str) -> dict[str, Any]:
        """What an instance reported last. Raises NotFound, VerificationError, StorageError."""
        return status.read_status(self._layout, service, instance)

    def remove_status(self, service: str, instance: str) -> None:
        """Take away what an instance reported. Raises InvalidRequest, NotFound, StorageError."""
        status.remove_status(self._layout, service, instance)

    def statuses(self, service: str, channel: str | None = None) -> dict[str, dict[str, Any]]:
        """Instance → what it reported last, on any channel or one. Raises VerificationError, StorageError."""
        return status.read_statuses(self._layout, service, channel)

    def served(self, channel: str) -> Served | None:
        """Which release a channel's gateways served last. See `served.last_served` for errors."""
        return served.last_served(self._layout, channel)

    def note_served(self, channel: str, now: Served, *, by: str) -> None:
        """Write down which release a gateway serves. See `served.note_served` for errors."""
        served.note_served(self._layout, channel, now, by=by)

    def collect(self, retention: Retention, *, by: str, apply: bool) -> list[Verdict]:
        """What becomes of each version that nobody may need; done only if `apply`. See `collect.collect` for errors."""
        return list(self.collecting(retention, by=by, apply=apply))

    def collecting(
        self, retention: Retention, *, by: str, apply: bool, progress: Progress = no_progress
    ) -> Iterator[Verdict]:
        """As `collect`, each verdict as soon as it is done."""
        return collect.collect(self._layout, retention, by=by, apply=apply, progress=progress)

    def leftovers(self, retention: Retention) -> list[Leftover]:
        """What publishers left that were killed, which `collect` removes in time. Raises StorageError."""
        return collect.leftovers(self._layout, retention)

    def log(self) -> list[AuditEntry]:
        """The last changes of the registry, the oldest first. Raises StorageError."""
        return audit.read_log(self._layout)

    def note(self, event: AuditEvent, *, by: str, what: str, why: str | None = None) -> bool:
        """Append a change to the audit log; False when it cannot be written, which is logged and stops nobody."""
        return audit.record(self._layout, event, by=by, what=what, why=why)

    def versions(self) -> list[ModelRef]:
        """Every version, sorted by name and step; for people. A service follows a channel instead."""
        with storage_errors("listing the versions"):
            return collect.list_versions(self._layout)

    def release_ids(self) -> list[str]:
        """Every release's id, sorted; for people."""
        with storage_errors("listing the releases"):
            return [name for name in self._layout.store.names(self._layout.releases) if name.startswith("r-")]

    def channel_names(self) -> list[str]:
        """Every channel's name, sorted; for people."""
        with storage_errors("listing the channels"):
            return self._layout.store.names(self._layout.channels)


def _publisher(by: str | None) -> str:
    return audit.acting_user() if by is None else check_by(by)
