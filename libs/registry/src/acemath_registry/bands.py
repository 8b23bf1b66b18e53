"""What the live figures of a channel's release may be, and when they have been something else for long enough."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acemath_registry.audit import AuditEvent, require_record
from acemath_registry.documents import decode, encode
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.layout import Layout
from acemath_registry.refs import check_by


class Measure(StrEnum):
    """What is measured over the last window, over all gateways."""

    ERROR_RATE = "error_rate"  # failed jobs, of those that were neither refused nor cancelled
    DEGRADED_RATE = "degraded_rate"  # answers that were less than was asked for, of the same jobs
    REFUSED_RATE = "refused_rate"  # requests that were refused, of these and the same jobs
    LATENCY_P95_SECONDS = "latency_p95_seconds"  # of answered jobs
    SCORE_MEAN = "score_mean"  # of candidates; a raw score's scale belongs to one reward model
    SCORE_MEDIAN = "score_median"


class Interval(BaseModel):
    """What a figure may be; beyond `low` or `high`, it is outside."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _between(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("give a lowest value, a highest, or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("the lowest value is above the highest")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        """E.g. `-1.5 … 4`."""
        return f"{'' if self.low is None else f'{self.low:g} '}…{'' if self.high is None else f' {self.high:g}'}"


class Band(Interval):
    """What one measure may be."""

    measure: Measure


class Bands(BaseModel):
    """What is watched on one channel.

    Attributes:
        bands: each measure once.
        window_seconds: that a figure is over; all of it has to be of the channel's current release.
        min_count: jobs or candidates in the window; fewer say nothing.
        looks: so many in a row have to find the same measure outside.
        for_seconds: after so long a release is no longer taken back: what goes wrong then is not its coming.
        selector: further label matchers of the gateways' series, e.g. `namespace="prod"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    bands: tuple[Band, ...] = ()
    window_seconds: int = Field(default=300, ge=30, le=86_400)
    min_count: int = Field(default=100, ge=1)
    looks: int = Field(default=3, ge=1, le=100)
    for_seconds: int = Field(default=21_600, ge=60)
    selector: str = Field(default="", max_length=500, pattern=r"^[^{}()\[\]\n]*$")

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len({band.measure for band in self.bands}) < len(self.bands):
            raise ValueError("a measure has two bands; give one")
        return self


M = TypeVar("M", bound=StrEnum)


class Streaks(Generic[M]):
    """Counts how many looks in a row found each measure outside, while one generation lasts.

    A look that finds it inside, or finds nothing, begins anew: what is not known is never a reason.
    """

    def __init__(self) -> None:
        self._generation, self._counts = 0, dict[M, int]()

    def note(self, generation: int, outside: Mapping[M, bool | None]) -> dict[M, int]:
        """Take in one look and give every measure's streak.

        Args:
            generation: of the channel; another one than before begins all anew.
            outside: measure → whether it was outside; None or left out: nothing was found.
        """
        before = self._counts if generation == self._generation else {}
        self._generation = generation
        self._counts = {measure: before.get(measure, 0) + 1 for measure, found in outside.items() if found}
        return dict(self._counts)


def read_bands(layout: Layout, channel: str) -> Bands:
    """What is watched on a channel; nothing when nobody declared anything.

    Raises:
        InvalidRequest: `channel` can not be a channel's name.
        VerificationError: BANDS_MALFORMED.
        StorageError: they can not be read.
    """
    path = layout.bands(channel)
    with storage_errors(f"reading the bands of channel {channel}"):
        try:
            data = layout.store.read(path)
        except FileNotFoundError:
            return Bands()
    document = decode(data, file=path.name, reason=RejectReason.BANDS_MALFORMED)
    try:
        return Bands.model_validate(document)
    except ValidationError as error:
        raise VerificationError(
            RejectReason.BANDS_MALFORMED, "is not bands of this schema; declare them again, or upgrade", file=path.name
        ) from error


def set_bands(layout: Layout, channel: str, bands: Bands, *, by: str) -> None:
    """Declare what is watched on a channel, in place of what was.

    Raises:
        InvalidRequest: `channel` or `by` can not be one.
        LockTimeout, StorageError: they, or the line in the audit log, can not be written; nothing was changed.
    """
    check_by(by)
    path = layout.bands(channel)
    with storage_errors(f"declaring the bands of channel {channel}"):
        why = "; ".join(f"{band.measure.value} {band}" for band in bands.bands) or "nothing"
        require_record(layout, AuditEvent.BANDS, by=by, what=channel, why=why)
        layout.store.replace(path, encode(bands.model_dump(mode="json")))
