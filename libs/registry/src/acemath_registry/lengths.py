"""What a release's models take less than those of the release before: allowed, as it may be meant, and worth saying.

The gateway refuses what is too long for its release (`context_length_exceeded`), so that requests which were answered
until now become 400s, and nothing fails.
"""

from __future__ import annotations

from contextlib import suppress

from acemath_core.errors import ServiceError
from acemath_registry.manifest import ModelKind
from acemath_registry.registry import Registry

_THEN = {
    ModelKind.POLICY: "longer requests become 400s",
    ModelKind.REWARD: "longer candidates may get no score",
}


def shorter_versions(registry: Registry, before: str, after: str) -> tuple[str, ...]:
    """A sentence for each version of a release that takes fewer tokens than the one of its kind in the release before.

    Args:
        registry: where both are.
        before: id of the release that was served until now.
        after: id of the other.

    What cannot be read is left out: nobody is kept from promoting for want of a warning.
    """
    said = []
    with suppress(ServiceError):
        old, new = registry.release(before), registry.release(after)
        for kind, then in _THEN.items():
            was, now = registry.manifest(old.member(kind).ref), registry.manifest(new.member(kind).ref)
            took, takes = was.compatibility.max_length, now.compatibility.max_length
            if takes < took:
                said.append(f"{now.ref} takes {takes} tokens, {was.ref} took {took}: {then}")
    return tuple(said)
