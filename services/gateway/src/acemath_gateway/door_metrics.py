"""The figures of the door: who was admitted by which limit, who waits, what idempotency keys did, is Redis there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from acemath_gateway.ports import LimitOutcome

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)


class KeyOutcome(StrEnum):
    """What an Idempotency-Key did."""

    WORKED = "worked"  # the first with its key
    REPLAYED = "replayed"  # got the answer of an earlier one
    CONFLICT = "conflict"  # the key came with another body
    UNAVAILABLE = "unavailable"  # the store is away


class CacheOutcome(StrEnum):
    """What was found of an earlier answer to the same request, where answers are given again."""

    HIT = "hit"
    MISS = "miss"
    BYPASSED = "bypassed"  # the caller wanted a new one, or there is no release yet
    AWAY = "away"  # so is the store


@dataclass(frozen=True)
class DoorMetrics:
    """The instruments; `DoorMetrics.on(registry)` makes them.

    Attributes:
        admissions: requests admitted, by the limit that granted their places.
        queue_wait: seconds that an admitted request waited for them.
        waiting: requests that wait now.
        idempotency: requests with an Idempotency-Key, by what it did.
        cached: requests that could be answered by an earlier answer, by what was found of it.
        max_sequences: candidates that may be made at once, over all gateways.
        redis_up: 1 while Redis answers, 0 while each gateway goes by its own limit.
    """

    admissions: Counter
    queue_wait: Histogram
    waiting: Gauge
    idempotency: Counter
    cached: Counter
    max_sequences: Gauge
    redis_up: Gauge

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Make every instrument on `registry`, each label set at 0."""
        prefix = "acemath_gateway"
        metrics = cls(
            admissions=Counter(f"{prefix}_admissions", "requests admitted", ("limit",), registry=registry),
            queue_wait=Histogram(
                f"{prefix}_queue_wait_seconds", "wait for places at the door", registry=registry, buckets=_SECONDS
            ),
            waiting=Gauge(f"{prefix}_queued_requests", "requests waiting for places", registry=registry),
            idempotency=Counter(
                f"{prefix}_idempotent_requests", "requests with an Idempotency-Key", ("result",), registry=registry
            ),
            cached=Counter(
                f"{prefix}_answer_cache",
                "requests by what was found of an earlier answer",
                ("result",),
                registry=registry,
            ),
            max_sequences=Gauge(
                f"{prefix}_max_sequences", "candidates that may be made at once, over all gateways", registry=registry
            ),
            redis_up=Gauge(f"{prefix}_redis_up", "1 while Redis answers", registry=registry),
        )
        for limit in LimitOutcome:
            metrics.admissions.labels(limit)
        for result in KeyOutcome:
            metrics.idempotency.labels(result)
        for found in CacheOutcome:
            metrics.cached.labels(found)
        return metrics
