"""What tells a canary from the current release: the same figures of both, over the same time, under two labels.

The label `release` is never an id: what they were is in the channel and the audit log. A job counts when it ends, under
what its release is then: a canary's jobs may outlast it, and are `old` then, so that none is charged to the next one.
Whether a window is all of one canary is told by the channel's generation (`release_generation`), which each change
moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from acemath_gateway.signed_sum import Sign, add_signed


class CountedAs(StrEnum):
    """What the release of a job is when the job ends."""

    CURRENT = "current"
    CANARY = "canary"
    OLD = "old"  # what it was when the job began, it is not any more; nothing compares these


_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


@dataclass(frozen=True)
class ReleaseFigures:
    """The instruments; `ReleaseFigures.on(...)` makes them.

    Attributes:
        requests: jobs that had a release, by which one and by outcome.
        duration: seconds of an answered job, by release; its wait for places included.
        score: raw scores of the candidates of answered jobs, by release.
        score_parts: sum of those above zero, and of those below (`signed_sum`).
        score_margin: best minus second-best score of a job, by release.
        agreement: share of a job's candidates whose answer is written as the chosen one, by release; of jobs with two
            or more candidates and an answer.
        fallbacks: requests of a canary's share that got the current release, by why.
        share: of the requests that a canary gets here now.
    """

    requests: Counter
    duration: Histogram
    score: Histogram
    score_parts: Counter
    score_margin: Histogram
    agreement: Histogram
    fallbacks: Counter
    share: Gauge

    @classmethod
    def on(
        cls,
        registry: CollectorRegistry,
        outcomes: Iterable[str],
        seconds: Sequence[float],
        scores: Sequence[float],
        margins: Sequence[float],
    ) -> Self:
        """Make every instrument on `registry`, with these buckets and each label set at 0."""

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(f"acemath_gateway_release_{name}", text, ["release"], registry=registry, buckets=buckets)
            for counted in CountedAs:
                made.labels(counted)
            return made

        requests = Counter(
            "acemath_gateway_release_requests", "jobs by release and outcome", ["release", "outcome"], registry=registry
        )
        for outcome in outcomes:
            for counted in CountedAs:
                requests.labels(counted, outcome)
        parts = Counter(
            "acemath_gateway_release_score_parts", "sum of raw scores above zero, and of those below, by release",
            ["release", "sign"], registry=registry,
        )  # fmt: skip
        for counted in CountedAs:
            for sign in Sign:
                parts.labels(counted, sign)
        return cls(
            requests,
            histogram("request_duration_seconds", "duration of an answered job with its wait", seconds),
            histogram("score", "raw scores (logits) by release", scores),
            parts,
            histogram("score_margin", "best minus second-best score of a job", margins),
            histogram("agreement", "share of a job's candidates with the chosen answer, as written", _SHARES),
            Counter(
                "acemath_gateway_canary_fallbacks", "requests of a canary's share that got the current release",
                ["state"], registry=registry,
            ),
            Gauge("acemath_gateway_canary_share", "share of the requests that a canary gets now", registry=registry),
        )  # fmt: skip

    def ended(self, counted: CountedAs, outcome: str, seconds: float, *, answered: bool) -> None:
        """A job that had a release is over."""
        self.requests.labels(counted, outcome).inc()
        if answered:
            self.duration.labels(counted).observe(seconds)

    def answered(
        self, counted: CountedAs, scores: Iterable[float], margin: float | None, agreement: float | None
    ) -> None:
        """What a job's candidates were like; None where it has no such figure."""
        observed = self.score.labels(counted)  # looked up once: there may be 64
        for score in scores:
            observed.observe(score)
            add_signed(self.score_parts, score, counted)
        if margin is not None:
            self.score_margin.labels(counted).observe(margin)
        if agreement is not None:
            self.agreement.labels(counted).observe(agreement)
