"""Model versions under one root; every method blocks on the disk, so call it from a thread in an async service."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path, PurePath

from acemath_registry import audit, cache, collect, hub, publish, reading, signed, verify
from acemath_registry.adapters.publish import publish_adapter
from acemath_registry.collect import Retention, Verdict
from acemath_registry.errors import InvalidRequest, storage_errors
from acemath_registry.files import OWN_NAMES
from acemath_registry.hub import HubCheckpoint
from acemath_registry.layout import Layout
from acemath_registry.manifest import Manifest, ModelKind, PublishMetadata
from acemath_registry.progress import Progress, no_progress
from acemath_registry.refs import ModelRef, check_by
from acemath_registry.signing import SigningKey, TrustedKeys
from acemath_registry.stores import Leftover, place_of


class Checkpoints:
    """Publishes, signs, reads, verifies, copies and removes versions.

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

    def versions(self) -> list[ModelRef]:
        """Every version, sorted by name and step; for people. A service follows a channel instead."""
        with storage_errors("listing the versions"):
            return collect.list_versions(self._layout)

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


def _publisher(by: str | None) -> str:
    return audit.acting_user() if by is None else check_by(by)
