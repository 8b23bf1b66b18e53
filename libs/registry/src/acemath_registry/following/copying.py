"""A version's private copy, made in a thread that ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from acemath_registry.registry import Registry
from acemath_registry.releases import ReleaseMember

_PATIENCE_SECONDS = 5.0  # for the chunk under way; a mount that hangs holds its thread, and nobody else


class _GivenUp(Exception):
    """Nobody waits for the copy."""


async def copied(registry: Registry, member: ReleaseMember, folder: Path) -> Path:
    """The verified private copy of a version in `folder`, made now or found there.

    Who is cancelled meanwhile gives the copy up: of several promotions in a row each would else copy to its end, beside
    the one that is wanted, and fill the disk that this one needs.

    Raises:
        NotFound, VerificationError, DiskFull, LockTimeout, StorageError: as `Registry.private_copy`.
    """
    gone = threading.Event()

    def progress(phase: str, done: int, total: int) -> None:
        if gone.is_set():
            raise _GivenUp

    def copy() -> Path:
        return registry.private_copy(member.ref, folder, manifest_sha256=member.manifest_sha256, progress=progress)

    copying = asyncio.ensure_future(asyncio.to_thread(copy))
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        gone.set()
        copying.add_done_callback(_noticed)
        await asyncio.wait({copying}, timeout=_PATIENCE_SECONDS)
        raise


def _noticed(copying: asyncio.Future[Path]) -> None:
    """How a copy failed that was given up is of no interest."""
    if not copying.cancelled():
        copying.exception()
