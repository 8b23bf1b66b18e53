"""What `acemath registry` checks: `publish` the source before all else, `verify` every version before it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from acemath_core.errors import InvalidRequest, ServiceError
from acemath_registry.errors import NotFound
from acemath_registry.manifest import Manifest
from acemath_registry.refs import ModelRef


def require_directory(source: str) -> None:
    """Refuse a source that is none, before its metadata is asked for.

    Raises:
        InvalidRequest: it is empty.
        NotFound: it is no directory.
    """
    if not source:
        raise InvalidRequest("the source is empty; give the folder of a checkpoint", param="source")
    if not Path(source).is_dir():
        said = f"there is no directory {source!r} to publish; give the folder that holds the checkpoint"
        raise NotFound(said, param="source")


def verify_each(checks: Iterable[tuple[ModelRef, Callable[[], Manifest]]]) -> list[Manifest]:
    """The manifests of all versions that are checked; none is left out because another one is damaged.

    Raises:
        ServiceError: the first that a check raised; with several versions its message names those at fault, and why.
    """
    asked, found, failed = list(checks), list[Manifest](), list[tuple[ModelRef, ServiceError]]()
    for ref, check in asked:
        try:
            found.append(check())
        except ServiceError as error:
            failed.append((ref, error))
    if failed:
        first = failed[0][1]
        if len(asked) > 1:
            first.message = "; ".join(f"{ref}: {error.message}" for ref, error in failed)
        raise first
    return found
