"""Takes a canary's share away when its live figures leave their bands, or promotes it when they stayed inside.

It compares with the current release in the same window, so that what changes for both changes nothing. It acts on
figures only: one that is missing, too small, or of a window in which the channel changed, begins every count anew. Each
act is a compare-and-set on the generation that was watched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from acemath_core.errors import ServiceError
from acemath_registry.bands import Streaks
from acemath_registry.canary_figures import (
    OF_SCORES,
    CanaryBand,
    CanaryBands,
    CanaryMeasure,
    compared,
    role_count_query,
    role_value_query,
)
from acemath_registry.channels import Canary, Channel
from acemath_registry.prometheus import NoFigure
from acemath_registry.refs import shortened
from acemath_registry.registry import Registry
from acemath_registry.watch import WATCHER, Figures, Look, Verdict, failed, unsettled_window

_ROLES = ("canary", "current")


@dataclass(frozen=True, slots=True)
class _Found:
    band: CanaryBand
    value: float
    canary: float
    current: float
    counts: tuple[float, float]

    def said(self, seconds: int) -> str:
        return (
            f"{self.band.measure.value} is {self.value:.4g} ({self.canary:.4g} against {self.current:.4g}) over "
            f"{seconds} s ({self.counts[0]:.0f} and {self.counts[1]:.0f} events), its band is {self.band}"
        )

    def told(self, streak: int) -> dict[str, Any]:
        """As JSON."""
        return {
            "value": self.value, "canary": self.canary, "current": self.current, "counts": list(self.counts),
            "band": str(self.band), "outside_looks": streak,
        }  # fmt: skip


class CanaryWatcher:
    """Looks at one channel's canary, again and again.

    Args:
        registry: where the channel is.
        channel: its name.
        figures: where the live figures come from.
        bands: what the canary is held to.
        promote_after_seconds: promote it when every look for so long found all measures inside; None never does.
        now: seconds, on a clock that only grows.
    """

    def __init__(
        self,
        registry: Registry,
        channel: str,
        figures: Figures,
        bands: CanaryBands,
        promote_after_seconds: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._name, self._figures, self._bands = registry, channel, figures, bands
        self._promote_after, self._now = promote_after_seconds, now
        self._streaks = Streaks[CanaryMeasure]()
        self._inside: tuple[int, float] | None = None  # generation, and when the first look of the row was

    def look(self) -> Look:
        """Look once, and act when this was the last look that was needed; raises nothing."""
        try:
            return self._look()
        except Exception as error:
            self._forget()
            return failed(error)

    def _look(self) -> Look:
        channel = self._registry.channel(self._name)
        if channel.canary is None:
            self._forget()
            said = "no release has a share of the requests"
            return Look(Verdict.NOT_WATCHED, said, channel.release, channel.generation)
        return self._judge(channel, channel.canary, self._same_reward(channel))

    def _forget(self) -> None:
        self._streaks.note(0, {})
        self._inside = None

    def _same_reward(self, channel: Channel) -> bool:
        release = self._registry.canary_release(channel)
        return release is not None and release.reward == self._registry.release(channel.release).reward

    def _judge(self, channel: Channel, canary: Canary, scores: bool) -> Look:
        unsettled = unsettled_window(self._figures, channel, self._bands)
        found = {} if unsettled else {band.measure: self._find(band, scores) for band in self._bands.bands}
        known = {measure: one for measure, one in found.items() if isinstance(one, _Found)}
        outside = {measure: not one.band.holds(one.value) for measure, one in known.items()}
        streaks = self._streaks.note(channel.generation, outside)
        measures = {m.value: _told(one, streaks.get(m, 0)) for m, one in found.items()}
        missing = "; ".join(f"{m.value}: {one}" for m, one in found.items() if isinstance(one, str))
        worst = [known[measure] for measure, looks in streaks.items() if looks >= self._bands.looks]
        if streaks or unsettled or missing:
            self._inside = None
        if worst:
            verdict, why = self._stop(channel, "; ".join(one.said(self._bands.window_seconds) for one in worst))
        elif streaks:
            verdict, why = Verdict.OUTSIDE, f"look {max(streaks.values())} of {self._bands.looks}"
        elif unsettled or missing:
            verdict, why = Verdict.NO_FIGURES, unsettled or missing
        else:
            verdict, why = self._inside_now(channel, canary)
        return Look(verdict, why, canary.release, channel.generation, measures)

    def _find(self, band: CanaryBand, scores: bool) -> _Found | str:
        measure, window = band.measure, self._bands
        if measure in OF_SCORES and not scores:
            return "the releases have different reward versions, whose scores have no common scale"
        try:
            counts = [self._figures.ask(role_count_query(measure, role, window)) for role in _ROLES]
            if min(counts) < window.min_count:
                return f"{counts[0]:.0f} and {counts[1]:.0f} events, {window.min_count} of each are needed"
            canary, current = (self._figures.ask(role_value_query(measure, role, window)) for role in _ROLES)
        except NoFigure as error:
            return str(error)
        value = compared(measure, canary, current)
        if value is None:
            return "the current release's is 0"
        return _Found(band, value, canary, current, (counts[0], counts[1]))

    def _inside_now(self, channel: Channel, canary: Canary) -> tuple[Verdict, str]:
        if self._inside is None or self._inside[0] != channel.generation:
            self._inside = channel.generation, self._now()
        lasted = self._now() - self._inside[1]
        if self._promote_after is None or lasted < self._promote_after:
            return Verdict.INSIDE, "every measure is in its band"
        self._forget()
        try:
            self._registry.promote(self._name, canary.release, expected_generation=channel.generation, by=WATCHER)
        except ServiceError as error:
            return Verdict.FAILED, f"every measure was in its band for {lasted:.0f} s; not promoted: {error.message}"
        return Verdict.CANARY_PROMOTED, f"every measure was in its band for {lasted:.0f} s"

    def _stop(self, channel: Channel, why: str) -> tuple[Verdict, str]:
        self._forget()  # whatever comes of it, the next time begins anew
        try:
            self._registry.stop_canary(
                self._name, by=WATCHER, expected_generation=channel.generation, why=shortened(why)
            )
        except ServiceError as error:
            return Verdict.FAILED, f"{why}; the share was not taken away: {error.message}"
        return Verdict.CANARY_STOPPED, why


def _told(found: _Found | str, streak: int) -> dict[str, Any]:
    return {"value": None, "why": found} if isinstance(found, str) else found.told(streak)
