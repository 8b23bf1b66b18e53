"""One forward pass on the engine's thread: cells in, scores to whoever waits; what fails, fails its own caller only."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from acemath_core.errors import InternalError, ServiceError, Unavailable
from acemath_reward.batching import group
from acemath_reward.metrics import RewardMetrics
from acemath_reward.pace import Pace
from acemath_reward.ports import Cell
from acemath_reward.seats import LiveItem, Outcome, Peeked, Seat
from acemath_reward.tickets import Engine, Part, Ticket
from acemath_reward.waiting import Item

_log = logging.getLogger(__name__)
_NOT_A_NUMBER = "the model gave a score that is not a number"
_GIVEN_UP = "the engine failed on this call; quote the x-request-id when you report it"

Caller = Ticket | Seat


@dataclass(frozen=True, slots=True)
class Pass:
    """What is computed together; of one version.

    Attributes:
        engine: computes it.
        whole: candidates that came whole.
        live: cells of live sessions, each candidate's in order, behind its prompt's.
    """

    engine: Engine
    whole: tuple[Item, ...]
    live: tuple[LiveItem, ...]

    @property
    def callers(self) -> list[Caller]:
        """Each one once."""
        everyone: list[Caller] = [*(item.ticket for item in self.whole), *(item.seat for item in self.live)]
        return list(dict.fromkeys(everyone))

    def of(self, caller: Caller) -> Pass:
        """The part of one caller."""
        whole = tuple(item for item in self.whole if item.ticket is caller)
        return Pass(self.engine, whole, tuple(item for item in self.live if item.seat is caller))


class PassRunner:
    """Computes passes; every method on the engine's thread.

    Args:
        metrics: the service's instruments.
        pace: learns how fast the engine is.
        drop: takes a failed caller out of what waits.

    Attributes:
        failing: the last pass did not end as it should, whoever was at fault; a flag between two threads.
    """

    def __init__(self, metrics: RewardMetrics, pace: Pace, drop: Callable[[Caller], None]) -> None:
        self._metrics, self._pace, self._drop = metrics, pace, drop
        self.failing = False

    def run(self, work: Pass) -> None:
        """Compute it; when that fails, once more each caller's part by itself; an engine that is away is not asked."""
        self._note_begin(work)
        try:
            self._compute(work)
        except Unavailable as error:
            self._metrics.failed_batches.inc()
            self._metrics.candidates.labels("failed").inc(len(work.whole) + len(work.live))
            for caller in work.callers:
                self._give_up(caller, error)
        except Exception as error:
            self.failing = True
            self._metrics.failed_batches.inc()
            callers = work.callers
            _log.error("a pass of %d calls failed", len(callers), exc_info=error)
            for caller in callers:
                self._run_alone(work.of(caller), caller, again=len(callers) > 1)

    def _note_begin(self, work: Pass) -> None:
        for caller in work.callers:
            waited = caller.begun()
            if waited is not None:
                self._metrics.queue_seconds.observe(waited)

    def _run_alone(self, work: Pass, caller: Caller, *, again: bool) -> None:
        """Compute one caller's part of a failed pass; or, when that was all of the pass, give the call up."""
        try:
            if not again:
                raise InternalError(_GIVEN_UP)
            self._compute(work)
        except Exception as error:
            if again:
                _log.error("a call failed by itself", exc_info=error)
            self._metrics.candidates.labels("failed").inc(len(work.whole) or 1)
            self._give_up(caller, error if isinstance(error, ServiceError) else InternalError(_GIVEN_UP))

    def _give_up(self, caller: Caller, failure: ServiceError) -> None:
        if isinstance(caller, Ticket):
            caller.deliver(failure, 0.0)
        else:
            caller.deliver(None, failure)
        self._drop(caller)

    def _compute(self, work: Pass) -> None:
        groups, where = group([item.sequence for item in work.whole])
        planned = [work.engine.model.plan(part) for part in groups]
        cells: list[Cell] = [cell for plan in planned for cell in plan]
        started = time.monotonic()
        values = work.engine.model.forward([*cells, *(item.due.cell for item in work.live)])
        seconds = time.monotonic() - started
        self.failing = False
        self._measure(work, [*cells, *(item.due.cell for item in work.live)], seconds)
        for seat in {item.seat for item in work.live}:
            seat.computed(seconds)
        scored = iter([value for cell, value in zip(cells, values, strict=False) if cell.scored])
        found = {work.whole[i]: _number(next(scored)) for positions in where for i in positions}
        self._deliver_whole(found, seconds)
        self._deliver_live(work.live, values[len(cells) :])

    def _deliver_whole(self, found: dict[Item, float], seconds: float) -> None:
        scores: dict[Ticket, list[tuple[int, float]]] = {}
        for item, value in found.items():
            scores.setdefault(item.ticket, []).append((item.position, value))
        for ticket, pairs in scores.items():
            if all(math.isfinite(value) for _, value in pairs):
                self._metrics.candidates.labels("cancelled" if ticket.cancelled else "scored").inc(len(pairs))
                ticket.deliver(Part(tuple(pairs)), seconds)
            else:
                self._metrics.candidates.labels("failed").inc(len(pairs))
                self._give_up(ticket, InternalError(_NOT_A_NUMBER))

    def _deliver_live(self, items: Sequence[LiveItem], values: Sequence[float | None]) -> None:
        for item, value in zip(items, values, strict=True):
            if not item.due.cell.scored or item.due.candidate is None or value is None:
                continue
            if item.due.peek:
                item.seat.deliver(item.due.candidate, Peeked(value))
            else:
                self._deliver_score(item.seat, item.due.candidate, value)

    def _deliver_score(self, seat: Seat, candidate: int, value: float) -> None:
        finite = math.isfinite(value)
        self._metrics.candidates.labels("scored" if finite else "failed").inc()
        if seat.live:
            self._metrics.live_final_seconds.observe(seat.seconds_since_end(candidate))
        outcome: Outcome = value if finite else InternalError(_NOT_A_NUMBER)
        seat.deliver(candidate, outcome)

    def _measure(self, work: Pass, cells: Iterable[Cell], seconds: float) -> None:
        tokens = sum(cell.tokens for cell in cells)
        live = sum(item.due.cell.tokens for item in work.live)
        self._pace.note(tokens, seconds)
        self._metrics.tokens_per_second.set(self._pace.tokens_per_second)
        self._metrics.compute_seconds.observe(seconds)
        self._metrics.batch_tokens.observe(tokens)
        candidates = {(item.seat, item.due.candidate) for item in work.live if item.due.candidate is not None}
        self._metrics.batch_sequences.observe(len(work.whole) + len(candidates))
        if work.engine.model.server is None:  # what a server of its own shares, nobody here knows
            alone = sum(item.sequence.tokens for item in work.whole) - (tokens - live)
            self._metrics.saved.inc(alone + sum(item.seat.saved(item.due) for item in work.live))
        written = [item.due.cell.tokens for item in work.live if item.seat.live]
        self._metrics.live_cells.inc(len(written))
        self._metrics.live_tokens.inc(sum(written))


def _number(value: float | None) -> float:
    if value is None:
        raise InternalError("the engine gave no score for a candidate that came whole")
    return value
