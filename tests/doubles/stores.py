"""What gateways share, in the memory of one process; `tests/contract` holds it to what Redis does."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from acemath_core.deadline import Deadline
from acemath_core.errors import Conflict, DeadlineExceeded, ErrorCode, Unavailable
from acemath_gateway.ports import KeptAnswer, LimitOutcome, Stored


@dataclass
class MemoryLimit:
    """`SequenceLimit` of one process.

    Attributes:
        places: how many sequences may be in flight.
        held: how many are.
        most_held: the most there ever were.
        release_seconds: how long giving places back takes.
    """

    places: int = 64
    release_seconds: float = 0.0
    held: int = 0
    most_held: int = 0
    wanted_until: float = 0.0

    @asynccontextmanager
    async def hold(
        self, request_id: str, sequences: int, deadline: Deadline, *, spare_only: bool = False
    ) -> AsyncIterator[LimitOutcome]:
        await asyncio.sleep(0)
        if spare_only and time.monotonic() < self.wanted_until:
            raise Unavailable("somebody else wants the places", retry_after=1.0)
        if self.held + sequences > max(int(0.75 * self.places) if spare_only else self.places, sequences):
            self.wanted_until = self.wanted_until if spare_only else time.monotonic() + 0.5
            raise Unavailable("the places are taken", retry_after=1.0)
        self.held += sequences
        self.most_held = max(self.most_held, self.held)
        try:
            yield LimitOutcome.LOCAL
        finally:
            try:
                await asyncio.sleep(self.release_seconds)
            finally:
                self.held -= sequences


@dataclass
class MemoryAnswers:
    """`AnswerStore` of one process.

    Attributes:
        ttl_seconds: how long an answer is kept.
        total_bytes: what all of them may take.
        away: behaves as if the store could not be reached.
        hangs: whether no call ever ends.
        kept: key → answer and when it was kept; the oldest first.
    """

    ttl_seconds: float = 60.0
    total_bytes: int = 2**20
    away: bool = False
    hangs: bool = False
    kept: dict[str, tuple[bytes, str, float]] = field(default_factory=dict)

    async def get(self, key: str) -> KeptAnswer | None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the store is away")
        if self.hangs:
            await asyncio.Event().wait()
        body, release, at = self.kept.get(key, (b"", "", -math.inf))
        age = time.monotonic() - at
        return KeptAnswer(body, release, age) if age < self.ttl_seconds else None

    async def put(self, key: str, body: bytes, release: str) -> None:
        await asyncio.sleep(0)
        if self.away or len(body) > 64 * 1024:
            return
        if self.hangs:
            await asyncio.Event().wait()
        self.kept.pop(key, None)
        self.kept[key] = body, release, time.monotonic()
        while sum(len(body) + 512 for body, _, _ in self.kept.values()) > self.total_bytes:
            del self.kept[next(iter(self.kept))]


@dataclass
class MemoryIdempotency:
    """`IdempotencyStore` of one process.

    Attributes:
        away: behaves as if the store could not be reached.
        entries: key → fingerprint, and the answer once there is one.
    """

    away: bool = False
    entries: dict[str, tuple[str, Stored | None]] = field(default_factory=dict)

    async def begin(self, key: str, fingerprint: str, deadline: Deadline) -> Stored | None:
        if self.away:
            raise Unavailable("the store is away", code=ErrorCode.IDEMPOTENCY_UNAVAILABLE, retry_after=1.0)
        while key in self.entries:
            known, answer = self.entries[key]
            if known != fingerprint:
                raise Conflict("another body", code=ErrorCode.IDEMPOTENCY_CONFLICT, should_retry=False)
            if answer is not None:
                return answer
            if deadline.expired():
                raise DeadlineExceeded("still being worked on")
            await asyncio.sleep(0.01)
        self.entries[key] = (fingerprint, None)
        return None

    async def finish(self, key: str, fingerprint: str, answer: Stored) -> None:
        self.entries[key] = (fingerprint, answer)

    async def abandon(self, key: str, fingerprint: str) -> None:
        self.entries.pop(key, None)
