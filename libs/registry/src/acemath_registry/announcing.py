"""Saying beforehand that one is about to need a version, so that no collection removes it meanwhile."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager

from acemath_registry.documents import encode
from acemath_registry.layout import Layout
from acemath_registry.refs import ModelRef
from acemath_registry.stores.port import ANNOUNCEMENTS


def announced(layout: Layout, names: Sequence[str], needed: Sequence[ModelRef]) -> AbstractContextManager[None]:
    """Announce, where the store has no locks, what is about to be named; the announcement ends with the block.

    Args:
        layout: of the registry.
        names: releases and versions.
        needed: the versions among them, or in them.

    Raises:
        Conflict: one of them is being removed.
        StorageError: it can not be written.
    """
    note = layout.status(ANNOUNCEMENTS, uuid.uuid4().hex)
    data = encode({"names": list(names), "at": time.time()})
    return layout.store.announced(note, data, [layout.tombstone(ref) for ref in needed])
