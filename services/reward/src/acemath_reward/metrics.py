"""The service's own figures; names begin with `acemath_reward_`."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from acemath_core.wire import SlotState
from acemath_reward.ports import ServerEnd

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LONG = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300, 600)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

RESULTS = ("scored", "failed", "cancelled")
PEEKS = ("answered", "dropped", "failed")
LIVE_ENDS = ("done", "closed", "idle", "deadline", "draining", "refused", "failed")
SERVER_FAILURES = tuple(end.value for end in ServerEnd if end is not ServerEnd.CLOSED)
REJECTIONS = (
    "queue_full",
    "too_late",
    "live_memory",
    "too_many_calls",
    "too_long",
    "text_too_large",
    "not_served",
    "bad_tokens",
    "deadline",
)


class RewardMetrics:
    """Instruments, every label value of which exists from the start, so that a rate over the first event is right.

    Args:
        registry: where they live; a test makes its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.queue_items = self._gauge("queue_items", "candidates that wait")
        self.queue_tokens = self._gauge("queue_tokens", "tokens that wait, prompts counted once a call")
        self.tokens_per_second = self._gauge("tokens_per_second", "recent speed of the engine, tokens it computed")
        self.peak = self._gauge("peak_tokens_per_second", "of matrix products alone, measured at load; 0 unknown")
        self.tokenize_seconds = self._histogram("tokenize_seconds", "one call: text to ids, waiting included", _SECONDS)
        self.queue_seconds = self._histogram("queue_seconds", "one call: queued to the first batch", _SECONDS)
        self.compute_seconds = self._histogram("compute_seconds", "one batch in the engine", _SECONDS)
        self.batch_tokens = self._histogram("batch_tokens", "tokens of a batch, prompts once", _TOKENS)
        self.batch_sequences = self._histogram("batch_sequences", "candidates of a batch", _SEQUENCES)
        self.candidates = self._counter("scored_candidates", "candidates by what became of them", "result")
        self.duplicates = self._counter("duplicate_candidates", "candidates equal to another of their call")
        self.saved = self._counter("prompt_tokens_saved", "prompt tokens that sharing made unnecessary")
        self.live_sessions = self._gauge("live_sessions", "jobs whose candidates are being written")
        self.live_pieces = self._counter("live_pieces", "pieces of candidates that came")
        self.live_tokens = self._counter("live_tokens", "tokens computed for live sessions, their prompts among them")
        self.live_cells = self._counter("live_cells", "cells computed for live sessions")
        self.live_final_seconds = self._histogram("live_final_seconds", "a candidate's end to its score", _SECONDS)
        self.live_peeks = self._counter("live_peeks", "partial scores asked for, by what became of them", "result")
        self.live_partial_seconds = self._histogram("live_partial_seconds", "a peek to its partial score", _SECONDS)
        self.live_ends = self._counter("live_ends", "jobs on live connections by how they ended", "reason")
        self.server_failures = self._counter("server_failures", "vLLM servers that did not score", "reason")
        self.failed_batches = self._counter("failed_batches", "batches that the engine did not finish")
        self.rejections = self._counter("rejections", "calls turned away", "reason")
        self.ready = self._gauge("ready", "1 while the active version scores")
        self.model_info = self._gauge("model_info", "1 for the active version", "version", "dtype", "device")
        self.invariant = self._gauge("batch_invariant", "1 if the start-up check found scores free of their batch")
        self.generation = self._gauge("channel_generation", "generation last read")
        self.registry_errors = self._counter("registry_errors", "failed looks at the registry", "what")
        self.swap_waiting = self._gauge("swap_waiting", "1 while the named version waits for a place")
        self.swaps = self._counter("swaps", "versions brought up, by what became of it", "outcome")
        self.phase_seconds = self._histogram("phase_seconds", "verify, stage, warm", _LONG, "phase")
        self._versions = self._gauge("versions", "versions by state", "state")
        _touch(self.candidates, RESULTS)
        _touch(self.rejections, REJECTIONS)
        _touch(self.live_peeks, PEEKS)
        _touch(self.live_ends, LIVE_ENDS)
        _touch(self.server_failures, SERVER_FAILURES)
        _touch(self.registry_errors, ("channel", "status"))
        _touch(self.swaps, ("activated", "rejected", "superseded"))

    def set_versions(self, states: Iterable[SlotState]) -> None:
        """Count the versions by state."""
        tally = Tally(states)
        for state in SlotState:
            self._versions.labels(state.value).set(tally[state])

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"acemath_reward_{name}", text, labels, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"acemath_reward_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"acemath_reward_{name}", text, labels, registry=self._registry, buckets=buckets)


def _touch(counter: Counter, values: Iterable[str]) -> None:
    for value in values:
        counter.labels(value)
