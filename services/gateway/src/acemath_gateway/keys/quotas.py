"""Quotas as data: what a key has left, one request of it, what that has used; and the port that counts it all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from acemath_core.admin import Quotas
from acemath_core.deadline import Deadline
from acemath_gateway.keys.records import NO_QUOTAS


class QuotaKind(StrEnum):
    """Which quota refused a request."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    SEQUENCES = "sequences"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key has left.

    Attributes:
        requests: that may be started now; meaningless without such a quota.
        requests_reset_seconds: until that is a whole minute's worth again.
        tokens: that may be generated now; below 0 it is what is owed.
        tokens_reset_seconds: until that is a whole minute's worth again.
        refused: the quota that refused the request; None when it was let in.
        retry_seconds: when that quota may let it in.
    """

    requests: int = 0
    requests_reset_seconds: float = 0.0
    tokens: int = 0
    tokens_reset_seconds: float = 0.0
    refused: QuotaKind | None = None
    retry_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a key with quotas.

    Attributes:
        id: of this visit; no two have the same.
        key_id: whose.
        quotas: the key's.
        sequences: candidates that it may have in flight at once.
        deadline: it has left by then.
    """

    id: str
    key_id: str
    quotas: Quotas
    sequences: int
    deadline: Deadline


class QuotaStore(Protocol):
    """Counts what keys use, over all gateways."""

    async def enter(self, visit: Visit) -> Standing | None:
        """Let a visit in or refuse it; None while the store is away: nothing is counted then.

        Raises:
            Unavailable: (`overloaded`) this gateway has too much to ask the store.
        """
        ...

    def leave(self, visit: Visit, *, tokens: int, started: bool) -> None:
        """The visit is over: soon it counts no more, and its tokens do. Never waits and never fails.

        Args:
            visit: one that was let in.
            tokens: generated for it.
            started: whether it was begun; otherwise its request is given back.
        """
        ...


@dataclass(slots=True)
class Bill:
    """What a request has used of its key's quotas so far.

    Attributes:
        quotas: the key's.
        standing: what the key had left when the request came; None when it has no quotas, or nothing was counted.
        tokens: generated for it, those of candidates that never ended too; known at its end, whatever that is.
        started: whether the request got its places.
    """

    quotas: Quotas = NO_QUOTAS
    standing: Standing | None = None
    tokens: int = 0
    started: bool = False

    def begin(self) -> None:
        """The request has its places."""
        self.started = True

    def spend(self, tokens: int) -> None:
        """The request is over, with so many generated tokens."""
        self.tokens = tokens
