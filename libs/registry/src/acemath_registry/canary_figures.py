"""How a canary's live figures may differ from the current release's, and what Prometheus is asked for them.

Both are taken over the same window from the same gateways, so that what the traffic is like is in both alike.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from acemath_registry.bands import Interval
from acemath_registry.prometheus import ANSWERED, RATES, Window, increase, mean_score


class CanaryMeasure(StrEnum):
    """What is compared: the canary's figure minus the current release's, or, of a ratio, over it."""

    ERROR_RATE = "error_rate"  # failed jobs, of those that were neither refused nor cancelled
    DEGRADED_RATE = "degraded_rate"  # answers that were less than was asked for, of the same jobs
    REFUSED_RATE = "refused_rate"  # requests that were refused, of these and the same jobs
    LATENCY_P95_RATIO = "latency_p95_ratio"  # of answered jobs
    AGREEMENT_MEAN = "agreement_mean"  # share of a job's candidates with the chosen answer
    SCORE_MEAN = "score_mean"  # of candidates
    SCORE_MARGIN_MEAN = "score_margin_mean"  # best minus second-best score of a job


OF_SCORES: Final = frozenset({CanaryMeasure.SCORE_MEAN, CanaryMeasure.SCORE_MARGIN_MEAN})
"""Scores of two reward models have no common scale: compared only where both releases have the same one."""

_HISTOGRAMS: Final = {
    CanaryMeasure.AGREEMENT_MEAN: "release_agreement",
    CanaryMeasure.SCORE_MEAN: "release_score",
    CanaryMeasure.SCORE_MARGIN_MEAN: "release_score_margin",
}


class CanaryBand(Interval):
    """What one difference (or ratio) may be."""

    measure: CanaryMeasure


class CanaryBands(BaseModel):
    """What a canary is held to.

    Attributes:
        bands: one at least, each measure once.
        window_seconds: that both figures are over; all of it has to be of the channel's present generation.
        min_count: jobs (or candidates) of either release in the window; fewer say nothing.
        looks: so many in a row have to find the same measure outside.
        selector: further label matchers of the gateways' series.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bands: tuple[CanaryBand, ...] = Field(min_length=1)
    window_seconds: int = Field(default=300, ge=30, le=86_400)
    min_count: int = Field(default=100, ge=1)
    looks: int = Field(default=3, ge=1, le=100)
    selector: str = Field(default="", max_length=500, pattern=r"^[^{}()\[\]\n]*$")

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len({band.measure for band in self.bands}) < len(self.bands):
            raise ValueError("a measure has two bands; give one")
        return self


def role_value_query(measure: CanaryMeasure, role: str, window: Window) -> str:
    """PromQL: one release's figure over the window; `role` is `canary` or `current`."""
    mine = f'release="{role}"'
    if measure is CanaryMeasure.SCORE_MEAN:
        return mean_score(_HISTOGRAMS[measure], window, mine)
    if measure in _HISTOGRAMS:
        name = _HISTOGRAMS[measure]
        return f"sum({increase(f'{name}_sum', window, mine)}) / sum({increase(f'{name}_count', window, mine)})"
    if measure is CanaryMeasure.LATENCY_P95_RATIO:
        buckets = increase("release_request_duration_seconds_bucket", window, mine)
        return f"histogram_quantile(0.95, sum by (le) ({buckets}))"
    part, whole = (f"sum({increase('release_requests_total', window, mine, chosen)})" for chosen in RATES[measure])
    return f"{part} / {whole}"


def role_count_query(measure: CanaryMeasure, role: str, window: Window) -> str:
    """PromQL: over how many jobs or candidates that is."""
    mine = f'release="{role}"'
    if measure in _HISTOGRAMS:
        return f"sum({increase(f'{_HISTOGRAMS[measure]}_count', window, mine)})"
    chosen = ANSWERED if measure is CanaryMeasure.LATENCY_P95_RATIO else RATES[measure][1]
    return f"sum({increase('release_requests_total', window, mine, chosen)})"


def compared(measure: CanaryMeasure, canary: float, current: float) -> float | None:
    """The difference, or the ratio; None where there is no such number."""
    if measure is not CanaryMeasure.LATENCY_P95_RATIO:
        return canary - current
    return canary / current if current > 0.0 else None
