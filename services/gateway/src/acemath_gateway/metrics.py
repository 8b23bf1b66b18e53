"""Every figure of the gateway's own, in one object; `acemath_web` adds the HTTP ones.

Label values come from enums and fixed tuples, never from a request; every set exists from the start with the value 0,
so that a rate over the first failure is right. `model_info` and the version labels follow releases, which are few.

Who writes what: the solver all that concerns a job (`requests` ... `overhead`), the adapters `upstream_*`,
`live_fallbacks` and `version_mismatch`, the release tracker `model_info`, `release_generation` and `leases`, the routes
and limits `rejections` and `disconnects`; `ready` asks for the verdict of `/readyz` whenever it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from acemath_core.wire import DegradedReason, Selection, StopReason
from acemath_gateway.release_figures import ReleaseFigures
from acemath_gateway.signed_sum import Sign

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)
_SCORES = (-20, -15, -10, -7.5, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7.5, 10, 15, 20)
_MARGINS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16)


class JobOutcome(StrEnum):
    """What became of a job."""

    OK = "ok"
    DEGRADED = "degraded"  # answered, and said to be less than was asked for
    FAILED = "failed"  # an error of ours
    DEADLINE = "deadline"  # its deadline came before anything could be chosen from
    REFUSED = "refused"  # the caller's mistake
    CANCELLED = "cancelled"  # nobody waited any more


class CandidateResult(StrEnum):
    """What became of a candidate."""

    SCORED = "scored"
    UNSCORED = "unscored"  # finished, without a score
    FAILED = "failed"  # the policy did not finish it
    CANCELLED = "cancelled"  # the job ended before it did
    REJECTED = "rejected"  # stopped, since its partial score was hopeless


class CallResult(StrEnum):
    """What became of one call to a replica."""

    OK = "ok"
    REFUSED = "refused"  # the request was at fault
    OVERLOADED = "overloaded"
    UNREACHABLE = "unreachable"
    BROKEN = "broken"  # cut off, or not what was agreed
    TIMEOUT = "timeout"
    NOT_SERVED = "not_served"  # it says that it does not have the leased version
    LATE = "late"  # its own time limit came before its answer; it works, and says so
    MISMATCH = "mismatch"  # another version than the leased one
    CANCELLED = "cancelled"


class BreakerState(StrEnum):
    """How it stands with a replica: who sends it work."""

    CLOSED = "closed"  # everybody
    OPEN = "open"  # nobody who can go elsewhere
    HALF_OPEN = "half_open"  # one call at a time


class LiveFallback(StrEnum):
    """Why a candidate was posted although it was to be scored while it was being written."""

    NOT_OPEN = "not_open"  # there was no connection
    CLOSED = "closed"  # it ended before the score came
    REFUSED = "refused"  # an error of this candidate
    SLOW = "slow"  # pieces came faster than they could be sent
    TIMEOUT = "timeout"  # the score did not come in time
    MISFIT = "misfit"  # the pieces are not how the candidate begins


class RejectionReason(StrEnum):
    """Why a request was not started."""

    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    UNAUTHENTICATED = "unauthenticated"
    KEYS = "keys"  # a key cannot be looked up now
    QUOTA = "quota"
    IDEMPOTENCY = "idempotency"


ROLES = ("policy", "reward")
BROKEN = (BreakerState.OPEN, BreakerState.HALF_OPEN)
EARLY_STOPS = (StopReason.AGREEMENT, StopReason.CANNOT_CHANGE, StopReason.SCORE)


@dataclass(frozen=True)
class GatewayMetrics:
    """The instruments; `GatewayMetrics.on(registry)` makes them.

    Attributes:
        requests: jobs by outcome and selection.
        duration: seconds of a job by outcome, its wait for places included.
        overhead: seconds of a job spent in the gateway itself: prompt, comparison of answers, choice.
        candidates: candidates by result.
        truncated: candidates that ended at their token limit.
        candidates_per_request: finished candidates of a job.
        early_stops: adaptive jobs that were settled before all of their candidates, by reason.
        saved_candidates: candidates that such jobs never began.
        saved_tokens: what these would have cost, were they as long as the job's others: an estimate.
        straggler_wait: seconds between a job's median and last score.
        first_candidate: seconds until a job's first candidate was complete.
        generated_tokens: tokens of all candidates.
        rejected_tokens: tokens of candidates that were not the answer.
        score: raw scores.
        score_parts: sum of the scores above zero, and of those below (`signed_sum`).
        score_margin: best minus second-best score of a job.
        degraded: degraded answers by reason.
        undecided: comparisons of answers without a verdict that could have changed a vote.
        inflight_requests: jobs being worked on.
        inflight_sequences: candidates being generated or scored.
        scoring_queue: finished candidates that wait for a place to be scored.
        rejections: requests not started, by reason.
        disconnects: clients that left before their answer.
        upstream_calls: calls to a replica, by role and result.
        upstream_seconds: seconds of such a call, by role.
        upstream_retries: calls that were tried at another replica or again.
        retries_refused: calls that were not, because the retry budget was spent.
        hedges: calls made beside one that took long.
        breakers: replicas whose breaker is open or half open, by role.
        breaker_opens: how often one opened.
        live_fallbacks: candidates that were posted although they were to be scored live, by reason.
        version_mismatch: answers of another version than the leased one, by role.
        ready: 1 while `/readyz` says ready.
        model_info: 1 for each version that new jobs use, by role and version.
        release_generation: the channel's generation that new jobs use.
        leases: jobs that hold the current release ("current"), a canary ("canary"), or another one ("old").
        records_failed: lease records that could not be written to the registry.
        polls_failed: passes of the release tracker that could not read the channel, or ended with a bug.
        releases: what tells a canary from the current release.
    """

    requests: Counter
    duration: Histogram
    overhead: Histogram
    candidates: Counter
    truncated: Counter
    candidates_per_request: Histogram
    early_stops: Counter
    saved_candidates: Counter
    saved_tokens: Counter
    straggler_wait: Histogram
    first_candidate: Histogram
    generated_tokens: Counter
    rejected_tokens: Counter
    score: Histogram
    score_parts: Counter
    score_margin: Histogram
    degraded: Counter
    undecided: Counter
    inflight_requests: Gauge
    inflight_sequences: Gauge
    scoring_queue: Gauge
    rejections: Counter
    disconnects: Counter
    upstream_calls: Counter
    upstream_seconds: Histogram
    upstream_retries: Counter
    retries_refused: Counter
    hedges: Counter
    breakers: Gauge
    breaker_opens: Counter
    live_fallbacks: Counter
    version_mismatch: Counter
    ready: Gauge
    model_info: Gauge
    release_generation: Gauge
    leases: Gauge
    records_failed: Counter
    polls_failed: Counter
    releases: ReleaseFigures

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Make every instrument on `registry`, each label set at 0."""
        make = _Maker(registry)
        metrics = cls(
            requests=make.counter("requests", "jobs by what became of them", "outcome", "selection"),
            duration=make.histogram("request_duration_seconds", "duration of a job with its wait", _SECONDS, "outcome"),
            overhead=make.histogram("overhead_seconds", "part of a job spent in the gateway itself", _SECONDS),
            candidates=make.counter("candidates", "candidates by what became of them", "result"),
            truncated=make.counter("truncated_candidates", "candidates that ended at their token limit"),
            candidates_per_request=make.histogram(
                "candidates_per_request", "finished candidates of a job", _CANDIDATES
            ),
            early_stops=make.counter("early_stops", "adaptive jobs settled before all candidates were made", "reason"),
            saved_candidates=make.counter("saved_candidates", "candidates that settled jobs never began"),
            saved_tokens=make.counter("saved_tokens", "tokens of these, were they as long as the others: estimated"),
            straggler_wait=make.histogram("straggler_wait_seconds", "from the median to the last score", _SECONDS),
            first_candidate=make.histogram("first_candidate_seconds", "until the first finished candidate", _SECONDS),
            generated_tokens=make.counter("generated_tokens", "tokens of all candidates"),
            rejected_tokens=make.counter("rejected_tokens", "tokens of candidates that were not the answer"),
            score=make.histogram("score", "raw scores (logits)", _SCORES),
            score_parts=make.counter("score_parts", "sum of raw scores above zero, and of those below", "sign"),
            score_margin=make.histogram("score_margin", "best minus second-best score of a job", _MARGINS),
            degraded=make.counter("degraded", "answers that were less than was asked for", "reason"),
            undecided=make.counter("undecided_comparisons", "comparisons without a verdict that could change a vote"),
            inflight_requests=make.gauge("inflight_requests", "jobs being worked on"),
            inflight_sequences=make.gauge("inflight_sequences", "candidates being generated or scored"),
            scoring_queue=make.gauge("scoring_queue", "finished candidates that wait for a place to be scored"),
            rejections=make.counter("rejections", "requests that were not started", "reason"),
            disconnects=make.counter("disconnects", "clients that left before their answer"),
            upstream_calls=make.counter("upstream_calls", "calls to a replica", "role", "result"),
            upstream_seconds=make.histogram("upstream_seconds", "duration of a call to a replica", _SECONDS, "role"),
            upstream_retries=make.counter("upstream_retries", "calls that were tried again", "role"),
            retries_refused=make.counter("retries_refused", "retries not made, the budget being spent", "role"),
            hedges=make.counter("hedges", "calls made beside one that took long", "role"),
            breakers=make.gauge("breakers", "replicas whose breaker is open or half open", "role", "state"),
            breaker_opens=make.counter("breaker_opens", "how often a replica's breaker opened", "role"),
            live_fallbacks=make.counter("live_fallbacks", "candidates to be scored live that were posted", "reason"),
            version_mismatch=make.counter("version_mismatch", "answers of another version than leased", "role"),
            ready=make.gauge("ready", "1 while /readyz says ready"),
            model_info=make.gauge("model_info", "1 for each version that new jobs use", "role", "version"),
            release_generation=make.gauge("release_generation", "the channel's generation that new jobs use"),
            leases=make.gauge("leases", "jobs that hold a release", "age"),
            records_failed=make.counter("lease_records_failed", "lease records that could not be written"),
            polls_failed=make.counter("release_polls_failed", "passes of the tracker that could not read the channel"),
            releases=ReleaseFigures.on(registry, JobOutcome, _SECONDS, _SCORES, _MARGINS),
        )
        metrics._initialise()
        return metrics

    def _initialise(self) -> None:
        _touch(self.requests, JobOutcome, Selection)
        _touch(self.score_parts, Sign)
        _touch(self.duration, JobOutcome)
        _touch(self.candidates, CandidateResult)
        _touch(self.early_stops, EARLY_STOPS)
        _touch(self.degraded, DegradedReason)
        _touch(self.rejections, RejectionReason)
        _touch(self.upstream_calls, ROLES, CallResult)
        _touch(self.upstream_seconds, ROLES)
        _touch(self.upstream_retries, ROLES)
        _touch(self.retries_refused, ROLES)
        _touch(self.hedges, ("reward",))
        _touch(self.breakers, ROLES, BROKEN)
        _touch(self.breaker_opens, ROLES)
        _touch(self.live_fallbacks, LiveFallback)
        _touch(self.version_mismatch, ROLES)
        _touch(self.leases, ("current", "canary", "old"))


class _Maker:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"acemath_gateway_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"acemath_gateway_{name}", text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"acemath_gateway_{name}", text, labels, registry=self._registry, buckets=tuple(buckets))


def _touch(metric: Counter | Gauge | Histogram, first: Iterable[str], second: Iterable[str] | None = None) -> None:
    for value in first:
        if second is None:
            metric.labels(value)
        else:
            for other in second:
                metric.labels(value, other)
