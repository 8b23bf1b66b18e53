"""What keys use, counted in the memory of one process; `tests/contract` holds it to what Redis does."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from acemath_gateway.keys.quotas import QuotaKind, Standing, Visit


@dataclass
class _Bucket:
    """A minute's worth that fills up again; the level may be below 0."""

    per_minute: int
    level: float
    at: float

    def now(self) -> float:
        now = time.monotonic()
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        return self.level

    def wait(self, wanted: float) -> float:
        return max(0.0, wanted - self.now()) * 60 / self.per_minute


@dataclass
class MemoryQuotas:
    """`QuotaStore` of one process.

    Attributes:
        away: behaves as if the store could not be reached.
        inside: the visits that are not over.
        paid: the tokens of those that are, in order.
    """

    away: bool = False
    inside: dict[str, Visit] = field(default_factory=dict)
    paid: list[int] = field(default_factory=list)
    buckets: dict[tuple[str, QuotaKind], _Bucket] = field(default_factory=dict)

    async def enter(self, visit: Visit) -> Standing | None:
        if self.away:
            return None
        requests, tokens = self._bucket(visit, QuotaKind.REQUESTS), self._bucket(visit, QuotaKind.TOKENS)
        most = visit.quotas.sequences_in_flight
        held = sum(one.sequences for one in self.inside.values() if one.key_id == visit.key_id)
        if most is not None and held + visit.sequences > most:
            return self._standing(visit, QuotaKind.SEQUENCES, 1.0)
        if tokens is not None and tokens.now() < 1:
            return self._standing(visit, QuotaKind.TOKENS, tokens.wait(1))
        if requests is not None and requests.now() < 1:
            return self._standing(visit, QuotaKind.REQUESTS, requests.wait(1))
        if requests is not None:
            requests.level -= 1
        self.inside[visit.id] = visit
        return self._standing(visit, None, 0.0)

    def leave(self, visit: Visit, *, tokens: int, started: bool) -> None:
        self.paid.append(tokens)
        if self.inside.pop(visit.id, None) is None:
            return
        paid, given = self._bucket(visit, QuotaKind.TOKENS), self._bucket(visit, QuotaKind.REQUESTS)
        if paid is not None:
            paid.now()
            paid.level -= tokens
        if given is not None and not started:
            given.level += 1

    def _bucket(self, visit: Visit, kind: QuotaKind) -> _Bucket | None:
        quotas = visit.quotas
        rate = quotas.requests_per_minute if kind is QuotaKind.REQUESTS else quotas.tokens_per_minute
        if rate is None:
            return None
        return self.buckets.setdefault((visit.key_id, kind), _Bucket(rate, rate, time.monotonic()))

    def _standing(self, visit: Visit, refused: QuotaKind | None, retry_seconds: float) -> Standing:
        requests, tokens = self._bucket(visit, QuotaKind.REQUESTS), self._bucket(visit, QuotaKind.TOKENS)
        return Standing(
            requests=math.floor(requests.now()) if requests else 0,
            requests_reset_seconds=requests.wait(requests.per_minute) if requests else 0.0,
            tokens=math.floor(tokens.now()) if tokens else 0,
            tokens_reset_seconds=tokens.wait(tokens.per_minute) if tokens else 0.0,
            refused=refused,
            retry_seconds=retry_seconds,
        )
