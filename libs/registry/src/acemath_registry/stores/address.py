"""Where a registry is: a directory, or `s3://bucket/prefix`."""

from __future__ import annotations

import re
from pathlib import Path, PurePath, PurePosixPath

from acemath_registry.errors import InvalidRequest
from acemath_registry.stores.disk import DISK
from acemath_registry.stores.port import Store

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_COLLAPSED = re.compile(r"s3:/[^/]")  # what `Path` makes of an address: no directory is meant
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*")


def place_of(address: str | PurePath) -> tuple[PurePath, Store]:
    """The root of a registry and what it lies on; nothing is touched.

    Raises:
        InvalidRequest: an address of another form, or of a store that is not supported.
    """
    if not str(address):
        raise InvalidRequest("the registry's address is empty; give a directory, or s3://bucket/prefix", param="root")
    if "://" not in str(address):
        if _COLLAPSED.match(str(address)):
            raise InvalidRequest(f"{str(address)!r} has lost a slash as a path; write s3://bucket/prefix as a string")
        return Path(address), DISK
    found = _ADDRESS.fullmatch(str(address))
    segments = [] if found is None else [part for part in (found["prefix"] or "").split("/") if part]
    if found is None or not all(_SEGMENT.fullmatch(part) for part in segments):
        raise InvalidRequest(f"{str(address)!r} is no place for a registry; give a directory, or s3://bucket/prefix")
    from acemath_registry.stores.objects import ObjectStore  # noqa: PLC0415 - only who uses it loads it
    from acemath_registry.stores.s3 import S3Bucket  # noqa: PLC0415

    root = PurePosixPath(*segments)
    return root, ObjectStore(S3Bucket(found["bucket"], probe_key=str(root / ".conditional-writes")))
