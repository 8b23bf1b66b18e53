"""One release against another on the same problems: made by `acemath eval compare`, read by a channel's gates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from acemath_core.wire import Wire

_RELEASE = r"^r-[0-9a-f]{12}$"


class Sampled(Wire):
    """One side of a comparison.

    Attributes:
        release: that gave every answer; its id is the digest of its two versions' manifests.
        policy: name@version, as the answers said.
        reward: name@version, as the answers said.
        journals: set → sha256 of the journal that its figures come from.
    """

    release: str = Field(pattern=_RELEASE)
    policy: str = Field(min_length=1)
    reward: str = Field(min_length=1)
    journals: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _digests(self) -> Sampled:
        if any(len(digest) != 64 or set(digest) - set("0123456789abcdef") for digest in self.journals.values()):
            raise ValueError("a journal's sha256 is 64 hex digits")
        return self


class PairedDifference(Wire):
    """One metric on one set of problems; all as fractions of problems.

    Attributes:
        set: name of the set of problems.
        metric: as reports name it, e.g. `rm@8`.
        problems: that both sides were asked.
        clusters: templates (or problems) that the bootstrap draws.
        baseline: the metric's value there.
        candidate: the metric's value here.
        difference: candidate minus baseline.
        low: lower end of the difference's paired interval.
        high: its upper end.
    """

    set: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    problems: int = Field(ge=1)
    clusters: int = Field(ge=1)
    baseline: float = Field(ge=0.0, le=1.0)
    candidate: float = Field(ge=0.0, le=1.0)
    difference: float = Field(ge=-1.0, le=1.0)
    low: float = Field(ge=-1.0, le=1.0)
    high: float = Field(ge=-1.0, le=1.0)

    @model_validator(mode="after")
    def _ordered(self) -> PairedDifference:
        if not self.low <= self.difference <= self.high:
            raise ValueError("low, difference and high are not in this order")
        return self


class Comparison(Wire):
    """Two releases on the same problems with the same sampling options and seeds.

    Attributes:
        baseline: the release that is compared with.
        candidate: the release that is judged.
        sampling: digest of the sampling options, the same on both sides.
        n: candidates asked for of each problem.
        level: of the intervals.
        method: of the intervals, in words.
        complete: whether every problem that either run was asked for has an outcome; failed ones count as wrong.
        results: each (set, metric) once.
    """

    object: Literal["release_comparison"] = "release_comparison"
    schema_version: Literal[1] = 1
    baseline: Sampled
    candidate: Sampled
    sampling: str = Field(min_length=1)
    n: int = Field(ge=1)
    level: float = Field(gt=0.0, lt=1.0)
    method: str = Field(min_length=1)
    complete: bool
    results: tuple[PairedDifference, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Comparison:
        names = [(result.set, result.metric) for result in self.results]
        if len(set(names)) < len(names):
            raise ValueError("a metric of a set appears twice")
        if self.baseline.release == self.candidate.release:
            raise ValueError("both sides are the same release")
        return self

    def find(self, set_name: str, metric: str) -> PairedDifference | None:
        """The difference of this metric on this set; None where it was not measured."""
        return next((one for one in self.results if (one.set, one.metric) == (set_name, metric)), None)
