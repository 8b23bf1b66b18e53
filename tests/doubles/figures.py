"""Live figures from a script, in Prometheus' place; tests/registry/test_watch.py asks both the same."""

from __future__ import annotations

from acemath_registry.bands import Bands, Measure
from acemath_registry.prometheus import NoFigure, count_query, generation_queries, value_query


class ScriptedFigures:
    """Answers the queries that it was given numbers for."""

    def __init__(self, answers: dict[str, float] | None = None) -> None:
        self.answers = dict(answers or {})

    def ask(self, query: str) -> float:
        """The number of this query; raises NoFigure where there is none."""
        if query not in self.answers:
            raise NoFigure("Prometheus has no such series, or several")
        return self.answers[query]

    def say(self, bands: Bands, generation: int, figures: dict[Measure, float], count: float = 1000.0) -> None:
        """What Prometheus would answer while all gateways used one generation."""
        self.answers = dict.fromkeys(generation_queries(bands), float(generation))
        for measure, value in figures.items():
            self.answers[value_query(measure, bands)] = value
            self.answers[count_query(measure, bands)] = count
