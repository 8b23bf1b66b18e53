"""What tells a canary from the current release: the same figures of both, over the same time, under two labels.

The label `release` is `current` or `canary`, never an id: what they were is in the channel and the audit log. Whether a
window is all of one canary is told by the channel's generation (`release_generation`), which each change moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from acemath_gateway.ports import ReleaseRole

_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


@dataclass(frozen=True)
class ReleaseFigures:
    """The instruments; `ReleaseFigures.on(...)` makes them.

    Attributes:
        requests: jobs that had a release, by which one and by outcome.
        duration: seconds of an answered job, by release; its wait for places included.
        score: raw scores of the candidates of answered jobs, by release.
        score_margin: best minus second-best score of a job, by release.
        agreement: share of a job's candidates whose answer is written as the chosen one, by release; of jobs with two
            or more candidates and an answer.
        fallbacks: requests of a canary's share that got the current release, by why.
        share: of the requests that a canary gets here now.
    """

    requests: Counter
    duration: Histogram
    score: Histogram
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
            for role in ReleaseRole:
                made.labels(role)
            return made

        requests = Counter(
            "acemath_gateway_release_requests", "jobs by release and outcome", ["release", "outcome"], registry=registry
        )
        for outcome in outcomes:
            for role in ReleaseRole:
                requests.labels(role, outcome)
        return cls(
            requests,
            histogram("request_duration_seconds", "duration of an answered job with its wait", seconds),
            histogram("score", "raw scores (logits) by release", scores),
            histogram("score_margin", "best minus second-best score of a job", margins),
            histogram("agreement", "share of a job's candidates with the chosen answer, as written", _SHARES),
            Counter(
                "acemath_gateway_canary_fallbacks", "requests of a canary's share that got the current release",
                ["state"], registry=registry,
            ),
            Gauge("acemath_gateway_canary_share", "share of the requests that a canary gets now", registry=registry),
        )  # fmt: skip

    def ended(self, role: ReleaseRole, outcome: str, seconds: float, *, answered: bool) -> None:
        """A job that had a release is over."""
        self.requests.labels(role, outcome).inc()
        if answered:
            self.duration.labels(role).observe(seconds)

    def answered(
        self, role: ReleaseRole, scores: Iterable[float], margin: float | None, agreement: float | None
    ) -> None:
        """What a job's candidates were like; None where it has no such figure."""
        observed = self.score.labels(role)  # looked up once: there may be 64
        for score in scores:
            observed.observe(score)
        if margin is not None:
            self.score_margin.labels(role).observe(margin)
        if agreement is not None:
            self.agreement.labels(role).observe(agreement)
