"""Takes a release back whose live figures leave their bands; never for want of figures, and never twice.

Only the release that a promotion brought is taken back, within its first hours: after a rollback, by whomever, the one
before it is the bad one. The rollback is a compare-and-set on the generation that was watched, so that who promotes
meanwhile wins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from acemath_core.errors import ServiceError
from acemath_registry.audit import CHANGES, AuditEvent
from acemath_registry.bands import Band, Bands, Measure, Streaks
from acemath_registry.channels import Channel
from acemath_registry.prometheus import NoFigure, Window, count_query, generation_queries, value_query
from acemath_registry.refs import shortened
from acemath_registry.registry import Registry

_log = logging.getLogger(__name__)
WATCHER: Final = "watch"
"""Who rolls back, in the channel and in the audit log."""


class Figures(Protocol):
    """Where live figures come from; `prometheus.Prometheus` is one."""

    def ask(self, query: str) -> float:
        """The one number that a query gives; raises NoFigure."""


class Verdict(StrEnum):
    """What a look comes to."""

    NOT_WATCHED = "not_watched"
    NO_FIGURES = "no_figures"
    INSIDE = "inside"
    OUTSIDE = "outside"
    ROLLED_BACK = "rolled_back"
    CANARY_STOPPED = "canary_stopped"
    CANARY_PROMOTED = "canary_promoted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Look:
    """One look: its verdict, why, and of each measure what was found."""

    verdict: Verdict
    why: str
    release: str | None = None
    generation: int | None = None
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "verdict": self.verdict.value,
            "why": self.why,
            "release": self.release,
            "generation": self.generation,
            "measures": self.measures,
        }


@dataclass(frozen=True, slots=True)
class _Found:
    band: Band
    value: float
    count: float

    def said(self, seconds: int) -> str:
        return (
            f"{self.band.measure.value} is {self.value:.4g} over {seconds} s ({self.count:.0f} events), its band is "
            f"{self.band}"
        )


def unsettled_window(figures: Figures, channel: Channel, window: Window) -> str | None:
    """Why the window is not all of the channel's present generation; None when it is."""
    try:
        lowest, highest = (figures.ask(query) for query in generation_queries(window))
    except NoFigure as error:
        return f"which release the gateways use: {error}"
    if (lowest, highest) == (channel.generation, channel.generation):
        return None
    return f"gateways used generations {lowest:.0f} to {highest:.0f} within the window, not only {channel.generation}"


def failed(error: Exception) -> Look:
    """A look that came to nothing. Whatever it was, the next one begins anew: a watch that ended would see nothing."""
    if isinstance(error, ServiceError):
        return Look(Verdict.FAILED, error.message)
    _log.error("a look failed; the next one begins anew", exc_info=error)
    return Look(Verdict.FAILED, f"the look failed ({type(error).__name__}: {error}); the next one begins anew")


class Watcher:
    """Looks at one channel, again and again.

    Args:
        registry: where the channel and its bands are.
        channel: its name.
        figures: where the live figures come from.
        now: Unix time.
    """

    def __init__(
        self, registry: Registry, channel: str, figures: Figures, now: Callable[[], float] = time.time
    ) -> None:
        self._registry, self._name, self._figures, self._now = registry, channel, figures, now
        self._streaks = Streaks[Measure]()

    def look(self) -> Look:
        """Look once, and take the release back when this was the last look that was needed; raises nothing."""
        try:
            return self._look()
        except Exception as error:
            self._streaks.note(0, {})
            return failed(error)

    def _look(self) -> Look:
        channel, bands = self._registry.channel(self._name), self._registry.bands(self._name)
        why = self._not_watched(channel, bands)
        if why is not None:
            self._streaks.note(channel.generation, {})
            return Look(Verdict.NOT_WATCHED, why, channel.release, channel.generation)
        return self._judge(channel, bands)

    def _not_watched(self, channel: Channel, bands: Bands) -> str | None:
        if not bands.bands:
            return "no bands were declared"
        if channel.canary is not None:
            return f"{channel.canary.release} has a share of the requests, and these figures are of both"
        if channel.previous is None:
            return "there is no release to go back to"
        age = self._now() - channel.at.timestamp()
        if age > bands.for_seconds:
            return f"it has served for {age / 3600:.1f} h: what goes wrong now is not its coming"
        lines = [e for e in reversed(self._registry.log()) if e.what == self._name and e.event in CHANGES]
        last = next((line for line in lines if line.event in (AuditEvent.PROMOTE, AuditEvent.ROLLBACK)), None)
        if last is None or lines[0].generation != channel.generation:
            return "the audit log does not say how this release came"
        return None if last.event is AuditEvent.PROMOTE else "it came by a rollback; the one before it is the bad one"

    def _judge(self, channel: Channel, bands: Bands) -> Look:
        unsettled = unsettled_window(self._figures, channel, bands)
        found = {} if unsettled else {band.measure: self._find(band, bands) for band in bands.bands}
        known = {measure: one for measure, one in found.items() if isinstance(one, _Found)}
        outside = {measure: not one.band.holds(one.value) for measure, one in known.items()}
        streaks = self._streaks.note(channel.generation, outside)
        measures = {measure.value: _told(one, streaks.get(measure, 0)) for measure, one in found.items()}
        worst = [known[measure] for measure, looks in streaks.items() if looks >= bands.looks]
        if worst:
            verdict, why = self._back(channel, "; ".join(one.said(bands.window_seconds) for one in worst))
        elif streaks:
            verdict, why = Verdict.OUTSIDE, f"look {max(streaks.values())} of {bands.looks}"
        elif len(known) < len(bands.bands):
            verdict = Verdict.NO_FIGURES
            why = unsettled or "; ".join(f"{m.value}: {one}" for m, one in found.items() if isinstance(one, str))
        else:
            verdict, why = Verdict.INSIDE, "every measure is in its band"
        return Look(verdict, why, channel.release, channel.generation, measures)

    def _find(self, band: Band, bands: Bands) -> _Found | str:
        try:
            count = self._figures.ask(count_query(band.measure, bands))
            if count < bands.min_count:
                return f"{count:.0f} events, {bands.min_count} are needed"
            return _Found(band, self._figures.ask(value_query(band.measure, bands)), count)
        except NoFigure as error:
            return str(error)

    def _back(self, channel: Channel, why: str) -> tuple[Verdict, str]:
        self._streaks.note(0, {})  # whatever comes of it, the next time begins anew
        try:
            changed = self._registry.rollback(
                self._name,
                by=WATCHER,
                expected_generation=channel.generation,
                why=shortened(f"{channel.release}: {why}"),
            )
        except ServiceError as error:
            return Verdict.FAILED, f"{why}; the rollback failed: {error.message}"
        return Verdict.ROLLED_BACK, f"{why}; {channel.release} gave way to {changed.release}"


def _told(found: _Found | str, streak: int) -> dict[str, Any]:
    if isinstance(found, str):
        return {"value": None, "why": found}
    return {"value": found.value, "count": found.count, "band": str(found.band), "outside_looks": streak}
