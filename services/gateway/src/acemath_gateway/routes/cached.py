"""Answers that are given again: the same request of the same key gets what it got before, off by default.

An answer is kept under the caller, the route, the whole validated body, the release that made it and what the gateway
is set to choose by. So it is never another caller's, nor of a release that is not served. Kept are whole answers only:
nothing degraded, no stream, no line of a job. A caller steers it by `Cache-Control` (RFC 9111, 5.2.1): `no-cache` wants
a new answer, which is kept; `no-store` wants a new one that is not; `max-age=N` none older than N s.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import Counter
from starlette.requests import Request

from acemath_core.errors import Unavailable
from acemath_core.wire import Wire
from acemath_gateway.door_metrics import CacheOutcome
from acemath_gateway.ports import AnswerStore, KeptAnswer
from acemath_gateway.routes.once import Answer, caller_of, fingerprint
from acemath_web.context import note_facts

HEADER = "x-acemath-cache"
_STORE_SECONDS = 0.25  # for one call of the store: the request can do without
_MAX_AGE = re.compile(r"^max-age=\"?(\d{1,9})\"?$")


@dataclass(frozen=True, slots=True)
class Cached:
    """Gives answers again.

    Attributes:
        store: where they are kept; None keeps none.
        rules: what the gateway is set to choose by.
        release: the release that new requests get, None while there is none.
        results: counts requests, by `CacheOutcome`.
    """

    store: AnswerStore | None
    rules: str
    release: Callable[[], str | None]
    results: Counter

    async def answer(self, request: Request, body: Wire, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """The kept answer, or that of `work`, which is kept if it may be; `x-acemath-cache` says which."""
        if self.store is None:
            return await work()
        wanted = _Wanted.of(request)
        if not wanted.kept_at_all:
            self._count(CacheOutcome.BYPASSED)
            return await work()
        asked = f"{caller_of(request)}\0{fingerprint(request, body)}\0{self.rules}"
        kept = await self._found(self.store, asked, wanted)
        if kept is not None:
            return Answer(kept.body, release=kept.release, more={HEADER: "hit", "age": str(int(kept.age_seconds))})
        answer = await work()
        if answer.whole:
            await self._keep(self.store, asked, answer)
        answer.headers[HEADER] = "miss"
        return answer

    async def _found(self, store: AnswerStore, asked: str, wanted: _Wanted) -> KeptAnswer | None:
        release = self.release()
        if release is None or not wanted.oldest:
            self._count(CacheOutcome.BYPASSED)
            return None
        try:
            async with asyncio.timeout(_STORE_SECONDS):
                kept = await store.get(_place(asked, release))
        except (Unavailable, TimeoutError):  # a kept answer is a convenience: without it the request is worked on
            self._count(CacheOutcome.AWAY)
            return None
        hit = kept is not None and kept.age_seconds <= wanted.oldest
        self._count(CacheOutcome.HIT if hit else CacheOutcome.MISS)
        return kept if hit else None

    async def _keep(self, store: AnswerStore, asked: str, answer: Answer) -> None:
        place = _place(asked, answer.release)  # a canary's answers wait for its promotion
        with suppress(TimeoutError):  # its caller waits for it
            async with asyncio.timeout(_STORE_SECONDS):
                await store.put(place, bytes(answer.body), answer.release)

    def _count(self, outcome: CacheOutcome) -> None:
        self.results.labels(outcome).inc()
        note_facts(cache=outcome.value)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What `Cache-Control` asks for.

    Attributes:
        oldest: seconds; an older answer is not wanted, and with 0 none is.
        kept_at_all: whether the answer may be kept or a kept one be given.
    """

    oldest: float
    kept_at_all: bool

    @classmethod
    def of(cls, request: Request) -> _Wanted:
        lines = ",".join(request.headers.getlist("cache-control"))
        said = [part.strip().lower() for part in lines.split(",")]
        found = [_MAX_AGE.match(part) for part in said if part.startswith("max-age")]
        ages = [int(age[1]) if age else 0 for age in found]  # one that cannot be read wants none (RFC 9111, 4.2.1)
        oldest = 0 if "no-cache" in said else min(ages, default=math.inf)
        return cls(oldest, "no-store" not in said)


def _place(asked: str, release: str) -> str:
    return hashlib.sha256(f"{release}\0{asked}".encode()).hexdigest()
