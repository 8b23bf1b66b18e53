"""What publishers left in a bucket that were killed: objects of a version without its manifest, which nobody reads.

A publisher that lives may well count on objects that somebody left days ago. It announces its version before it looks
for them, and takes the announcement back after the manifest. So they go as a version goes (`removal`): the mark is set
first, then announcements and manifest are looked for, and at least one of the two sees the other and gives way. Nobody
sweeps an announcement in its first day: a publisher that took longer makes nothing visible, and is told to try again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from acemath_registry.errors import Conflict, InvalidRequest
from acemath_registry.manifest import MANIFEST_NAME
from acemath_registry.refs import ModelRef
from acemath_registry.stores import removal
from acemath_registry.stores.port import Leftover
from acemath_registry.stores.s3 import S3Bucket
from acemath_registry.stores.staging import STALE_STAGING_S

_MOST_UPLOAD_S: Final = STALE_STAGING_S - 3600.0
"""An announcement lives longer, by any clock that a store still talks to."""


@dataclass(slots=True)
class _Upload:
    """The objects of one version.

    Attributes:
        size: bytes.
        newest_s: Unix time at which the last of them was written, by the store's clock.
        whole: the manifest is there.
    """

    size: int = 0
    newest_s: float = 0.0
    whole: bool = False


def left(bucket: S3Bucket, root: PurePath, stale_after_s: float) -> list[Leftover]:
    """What `sweep` removes, now or when it is old enough, sorted by name; what is being published now is not."""
    notes = removal.announcements(bucket, root)
    return [
        Leftover(f"s3://{bucket.name}/{_folder(root, ref)}", upload.size, upload.newest_s + stale_after_s)
        for ref, upload in sorted(_unfinished(bucket, root).items())
        if not any(str(ref).encode() in note for note in notes)
    ]


def sweep(bucket: S3Bucket, root: PurePath, stale_after_s: float) -> None:
    """Remove objects without a manifest, of which the newest is older, and which nobody is about to publish."""
    for ref, upload in _unfinished(bucket, root).items():
        if _is_old(upload, stale_after_s):
            with suppress(Conflict):  # it took too long; the next collection tries again
                _remove(bucket, root, ref, stale_after_s)


def require_in_time(version: PurePath, since: float) -> None:
    """Refuse to make a version visible that took so long that its publisher may have been taken for dead.

    Args:
        version: its folder.
        since: Unix time at which its upload began, after it was announced.

    Raises:
        Conflict: it took longer than an announcement surely lives.
    """
    took = time.time() - since  # the clock that goes on while a machine is asleep
    if took > _MOST_UPLOAD_S:
        raise Conflict(
            f"uploading {version.parent.name}@{version.name} took {took / 3600:.0f} hours, so that a gc may have taken "
            "some of it for what a dead publisher left; publish again: what is there is not sent again"
        )


def _remove(bucket: S3Bucket, root: PurePath, ref: ModelRef, stale_after_s: float) -> None:
    folder, mark = _folder(root, ref), root / "tombstones" / ref.name / f"{ref.version}.json"
    with removal.removing(bucket, folder, mark, unmarked=True) as going:
        if going.refused is not None or not removal.nobody_needs(bucket, root, folder):
            return
        upload = _unfinished(bucket, root, ref).get(ref)
        if upload is None or not _is_old(upload, stale_after_s):
            return  # somebody was here, and was killed since
        going.go()
    going.clean()


def _unfinished(bucket: S3Bucket, root: PurePath, only: ModelRef | None = None) -> dict[ModelRef, _Upload]:
    """Version → its objects, where its manifest is not among them; of `only` one version, or of all."""
    models = f"{root / 'models'}/"
    found: dict[ModelRef, _Upload] = {}
    for key, size, written_s in bucket.listed(models if only is None else f"{_folder(root, only)}/"):
        name, _, rest = key[len(models) :].partition("/")
        version, _, file = rest.partition("/")
        with suppress(InvalidRequest):  # of somebody else
            upload = found.setdefault(ModelRef(name, version), _Upload())
            upload.size, upload.newest_s = upload.size + size, max(upload.newest_s, written_s)
            upload.whole = upload.whole or file == MANIFEST_NAME
    return {ref: upload for ref, upload in found.items() if not upload.whole}


def _is_old(upload: _Upload, stale_after_s: float) -> bool:
    return time.time() - upload.newest_s > stale_after_s


def _folder(root: PurePath, ref: ModelRef) -> PurePath:
    return root / "models" / ref.name / ref.version
