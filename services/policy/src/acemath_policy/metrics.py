"""The agent's own figures; vLLM's are scraped from vLLM."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from acemath_core.wire import SlotState

_LONG = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600, 1200)
_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class PolicyMetrics:
    """Instruments named `acemath_policy_…`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._slots = Gauge("acemath_policy_slots", "versions by state", ("state",), registry=registry)
        self.ready = Gauge("acemath_policy_ready", "1 while the active version makes tokens", registry=registry)
        self.generation = Gauge("acemath_policy_channel_generation", "generation last read", registry=registry)
        self.swap_waiting = Gauge(
            "acemath_policy_swap_waiting", "1 while the named version waits for a place", registry=registry
        )
        self.swaps = Counter(
            "acemath_policy_swaps", "versions brought up, by what became of it", ("outcome",), registry=registry
        )
        self.restarts = Counter("acemath_policy_vllm_restarts", "servers started again", registry=registry)
        self.registry_errors = Counter(
            "acemath_policy_registry_errors", "failed looks at the registry", ("what",), registry=registry
        )
        self.probe_seconds = Histogram(
            "acemath_policy_probe_seconds", "one token from an idle engine", registry=registry, buckets=_SHORT
        )
        self.phase_seconds = Histogram(
            "acemath_policy_phase_seconds", "verify, stage, warm", ("phase",), registry=registry, buckets=_LONG
        )
        for outcome in ("activated", "rejected", "superseded"):
            self.swaps.labels(outcome)
        for what in ("channel", "status"):
            self.registry_errors.labels(what)

    def set_slots(self, states: Iterable[SlotState]) -> None:
        """Count the versions by state."""
        tally = Tally(states)
        for state in SlotState:
            self._slots.labels(state.value).set(tally[state])
