"""The registry as one object; every method blocks on the disk, so call it from a thread in an async service."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from acemath_core.comparison import Comparison
from acemath_registry import (
    audit,
    bands,
    cache,
    collect,
    durable,
    evaluations,
    gatekeeping,
    gates,
    hub,
    publish,
    releases,
    signed,
    status,
    verify,
)
from acemath_registry.adapters.publish import publish_adapter
from acemath_registry.adapters.stored import verify_stored
from acemath_registry.audit import AuditEntry, AuditEvent
from acemath_registry.bands import Bands
from acemath_registry.collect import Retention, Verdict
from acemath_registry.errors import InvalidRequest, storage_errors
from acemath_registry.evaluations import Attached
from acemath_registry.finite import require_finite
from acemath_registry.gates import Gates, Refusal
from acemath_registry.hub import HubCheckpoint
from acemath_registry.layout import Layout
from acemath_registry.manifest import Manifest, ModelKind, PublishMetadata
from acemath_registry.progress import Progress, no_progress
from acemath_registry.refs import VERSION_PATTERN, ModelRef
from acemath_registry.releases import Channel, Release
from acemath_registry.signing import SigningKey, TrustedKeys


class Registry:
    """Model versions, releases and channels under one directory, which may be a mount that many hosts share.

    Making one touches no disk; a reader never needs to write.

    Args:
        root: the registry's directory; the first publish makes it.
        trusted: keys, one of which must have signed a version whose manifest or files are asked for; None asks no
            signature.
    """

    def __init__(self, root: Path | str, *, trusted: TrustedKeys | None = None) -> None:
        self._layout, self._trusted = Layout(Path(root)), trusted

    @property
    def root(self) -> Path:
        """The registry's directory."""
        return self._layout.root

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
        if kind not in list(ModelKind):
            raise InvalidRequest(f"{kind!r} is not a kind of model; it is policy or reward", param="kind")
        who, source = by or audit.acting_user(), Path(source_dir)
        publishing = publish.publish if adapter_of is None else partial(publish_adapter, base=adapter_of)
        ref = publishing(
            self._layout, source, name=name, kind=ModelKind(kind), metadata=metadata, by=who, signer=signer,
            progress=progress,
        )  # fmt: skip
        if signer is not None:
            signed.ensure_signed(self._layout, ref, signer, metadata, by=who)
        return ref

    def sign(self, ref: ModelRef, key: SigningKey, *, by: str, progress: Progress = no_progress) -> None:
        """Sign a version that is published already. See `signed.sign_version` for errors."""
        signed.sign_version(self._layout, ref, key, by=by, progress=progress)

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
            describe: makes the manifest's part that only a publisher knows, of what was downloaded.
        """
        with storage_errors(f"downloading {source}"):
            durable.ensure_directory(self._layout.staging)
            with publish.staging_folder(self._layout.staging) as folder:
                checkpoint = hub.download(source, folder, progress, endpoint=endpoint)
                metadata = describe(checkpoint)
                return self.publish(
                    folder, name=name, kind=kind, metadata=metadata, by=by, signer=signer, progress=progress
                )

    def path(self, ref: ModelRef) -> Path:
        """The directory of a version in the registry; not checked to exist. Load from `private_copy` instead."""
        return self._layout.version(ref)

    def manifest(
        self, ref: ModelRef, directory: Path | str | None = None, *, manifest_sha256: str | None = None
    ) -> Manifest:
        """The manifest of a version, or of a copy of it in `directory`; see `verify.read_manifest` for errors."""
        where = self.path(ref) if directory is None else Path(directory)
        return verify.read_manifest(ref, where, manifest_sha256=manifest_sha256, trusted=self._trusted)

    def verify(
        self,
        ref: ModelRef,
        directory: Path | str | None = None,
        *,
        manifest_sha256: str | None = None,
        progress: Progress = no_progress,
    ) -> Manifest:
        """Check every byte of a version, in the registry or in a copy of it, and that all its weights are finite.

        Args:
            ref: the version.
            directory: where the copy is; None for the registry's own.
            manifest_sha256: what the release says of the manifest; without it an edit of both the manifest and
                its seal is not found.
            progress: hears how far hashing is.

        Raises:
            NotFound: there is no such directory.
            VerificationError: anything differs; `.reason` says what. An adapter version is merged for it.
            StorageError: a file can not be read.
        """
        where = self.path(ref) if directory is None else Path(directory)
        check = verify_stored if directory is None else verify.verify_directory
        manifest = check(ref, where, manifest_sha256=manifest_sha256, trusted=self._trusted, progress=progress)
        if manifest.adapter is None or directory is not None:  # merging has looked at every number
            require_finite(where, [entry.path for entry in manifest.files])
        return manifest

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
            ref, self.path(ref), Path(cache_dir), manifest_sha256=manifest_sha256, trusted=self._trusted,
            progress=progress,
        )  # fmt: skip

    def create_release(self, policy: ModelRef, reward: ModelRef) -> Release:
        """Pair a policy and a reward version. See `releases.create_release` for errors."""
        return releases.create_release(self._layout, policy, reward)

    def release(self, release_id: str) -> Release:
        """A release, its bytes checked against its id. See `releases.read_release` for errors."""
        return releases.read_release(self._layout, release_id)

    def promote(
        self, channel: str, release_id: str, *, expected_generation: int | None, by: str, override: str | None = None
    ) -> Channel:
        """Point a channel at a release by compare-and-set, if the channel's gates let it.

        Args:
            channel: its name.
            release_id: what to point at.
            expected_generation: what the caller saw; see `releases.promote`, also for further errors.
            by: who asks.
            override: the reason to promote what a gate refuses; it is written into the audit log first.

        Raises:
            GateRefused: a gate refuses; nothing was changed.
        """
        keeper = gatekeeping.gatekeeper(self._layout, channel, by=by, override=override)
        return releases.promote(
            self._layout, channel, release_id, expected_generation=expected_generation, by=by, gatekeeper=keeper
        )

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
        self, channel: str, *, by: str, expected_generation: int | None = None, why: str | None = None
    ) -> Channel:
        """Promote a channel's previous release; `why` is for the audit log. See `releases.rollback` for errors."""
        return releases.rollback(self._layout, channel, expected_generation=expected_generation, by=by, why=why)

    def bands(self, channel: str) -> Bands:
        """What is watched on a channel. See `bands.read_bands` for errors."""
        return bands.read_bands(self._layout, channel)

    def set_bands(self, channel: str, watched: Bands, *, by: str) -> None:
        """Declare what is watched on a channel. See `bands.set_bands` for errors."""
        bands.set_bands(self._layout, channel, watched, by=by)

    def channel(self, name: str) -> Channel:
        """Where a channel points. See `releases.read_channel` for errors; NotFound before the first promotion."""
        return releases.read_channel(self._layout, name)

    def write_status(self, service: str, instance: str, document: dict[str, Any]) -> None:
        """Replace what an instance reports. Raises InvalidRequest, StorageError."""
        status.write_status(self._layout, service, instance, document)

    def read_status(self, service: str, instance: str) -> dict[str, Any]:
        """What an instance reported last. Raises NotFound, VerificationError, StorageError."""
        return status.read_status(self._layout, service, instance)

    def remove_status(self, service: str, instance: str) -> None:
        """Take away what an instance reported. Raises InvalidRequest, NotFound, StorageError."""
        status.remove_status(self._layout, service, instance)

    def statuses(self, service: str) -> dict[str, dict[str, Any]]:
        """Instance → what it reported last. Raises VerificationError, StorageError."""
        return status.read_statuses(self._layout, service)

    def collect(self, retention: Retention, *, by: str, apply: bool) -> list[Verdict]:
        """What becomes of each version that nobody may need; done only if `apply`. See `collect.collect` for errors."""
        return collect.collect(self._layout, retention, by=by, apply=apply)

    def log(self) -> list[AuditEntry]:
        """The last changes of the registry, the oldest first. Raises StorageError."""
        return audit.read_log(self._layout)

    def note(self, event: AuditEvent, *, by: str, what: str, why: str | None = None) -> bool:
        """Append a change to the audit log; False when it cannot be written, which is logged and stops nobody."""
        return audit.record(self._layout, event, by=by, what=what, why=why)

    def versions(self) -> list[ModelRef]:
        """Every version, sorted by name and step; for people. A service follows a channel instead."""
        with storage_errors("listing the versions"):
            found = [path for path in self._layout.models.glob("*/*") if VERSION_PATTERN.fullmatch(path.name)]
        return sorted(
            (ModelRef(path.parent.name, path.name) for path in found), key=lambda ref: (ref.name, ref.step, ref.version)
        )

    def release_ids(self) -> list[str]:
        """Every release's id, sorted; for people."""
        with storage_errors("listing the releases"):
            return sorted(path.stem for path in self._layout.releases.glob("r-*.json"))

    def channel_names(self) -> list[str]:
        """Every channel's name, sorted; for people."""
        with storage_errors("listing the channels"):
            return sorted(path.stem for path in self._layout.channels.glob("[!.]*.json"))
