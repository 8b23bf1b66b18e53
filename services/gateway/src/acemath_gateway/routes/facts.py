"""What a request's line in the log says beyond its route: how much was asked for, what answered, what was less."""

from __future__ import annotations

from acemath_gateway.jobs import Outcome
from acemath_web.context import note_facts


def note_outcome(outcome: Outcome) -> None:
    """Release, counts and reasons of an answer; nothing of its text."""
    note_facts(
        release=outcome.target.release,
        n_generated=outcome.n_generated,
        n_scored=outcome.n_scored,
        stop_reason=outcome.stop_reason,
        degraded_reason=outcome.degraded_reason,
    )
