"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the phase (`copying`, `hashing`, …), the bytes done and the bytes in all; must return quickly.

What it raises stops the work and reaches the caller; nothing half done is left behind, so it is also how to cancel.
"""


def no_progress(phase: str, done: int, total: int) -> None:
    """Nobody wants to know."""


def counter(progress: Progress, phase: str, total: int) -> Callable[[int], None]:
    """A function that takes the bytes of each chunk and reports the sum as `phase`."""
    done = 0

    def advance(chunk_bytes: int) -> None:
        nonlocal done
        done += chunk_bytes
        progress(phase, done, total)

    progress(phase, 0, total)
    return advance
