"""One connection's candidates: pieces in, scores and errors out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from acemath_core.deadline import Deadline
from acemath_core.errors import (
    DeadlineExceeded,
    ErrorCode,
    InternalError,
    InvalidRequest,
    ServiceError,
    TooLarge,
    Unavailable,
)
from acemath_reward.batcher import Batcher
from acemath_reward.live.frames import Drop, End, Error, Partial, Peek, Piece, Score, ServerFrame
from acemath_reward.live.growing import GrowingCandidate, LiveContext
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import LiveBudgetExceeded, LiveError, SequenceTooLong
from acemath_reward.seats import Outcome, Peeked, Seat
from acemath_reward.tickets import Engine

_T = TypeVar("_T")
_LARGE = 4096  # characters or ids that are encoded off the event loop
_MAX_SEATS = 4  # prompts of different length: one for most candidates, one for each odd way to begin


class OffLoop(Protocol):
    """Runs what takes long in a thread. Raises `DeadlineExceeded` when it does not end in time."""

    async def __call__(self, work: Callable[[], _T], deadline: Deadline) -> _T:
        """The result of `work`."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may send.

    Attributes:
        candidates: indexes are below this.
        content_bytes: UTF-8 bytes of text, and 4 for each id, of all pieces.
        text_chars: characters of one candidate.
    """

    candidates: int
    content_bytes: int
    text_chars: int


class LiveScoring:
    """The candidates of one connection; everything on the event loop.

    Args:
        engine: scores them.
        context: what they answer.
        deadline: of the connection.
        batcher: computes.
        limits: of the connection.
        metrics: the service's instruments.
        send: takes a frame for the client, or what ends everything.
        off_loop: runs what takes long in a thread.

    Attributes:
        active: monotonic time of the last piece, end or score.
    """

    def __init__(
        self,
        engine: Engine,
        context: LiveContext,
        deadline: Deadline,
        batcher: Batcher,
        limits: ConnectionLimits,
        metrics: RewardMetrics,
        send: Callable[[ServerFrame | ServiceError], None],
        off_loop: OffLoop,
    ) -> None:
        self._engine, self._context, self._deadline, self._batcher = engine, context, deadline, batcher
        self._limits, self._metrics, self._send, self._off_loop = limits, metrics, send, off_loop
        self._growing: dict[int, GrowingCandidate] = {}
        self._owed: dict[int, int] = {}  # ended candidates without a score, and their tokens
        self._peeked: dict[int, tuple[int, float]] = {}  # without a partial score: their tokens, and since when
        self._untold: set[int] = set()  # with one that is not on its way to the client yet
        self._ended: set[int] = set()
        self._failed: set[int] = set()  # or dropped
        self._seats: dict[int, Seat] = {}
        self._bytes = 0
        self.active = time.monotonic()

    def start(self) -> None:
        """Have the prompt computed. Raises `ServiceError` when it cannot be."""
        try:
            self._seat(len(self._context.prompt))
        except LiveError as error:
            raise self._refusal(error, "messages") from error

    @property
    def owes(self) -> bool:
        """Whether a candidate waits for its score, or a peek for its answer."""
        return bool(self._owed or self._peeked)

    async def piece(self, piece: Piece) -> None:
        """Take a piece in. A candidate that cannot be scored is answered with an error of its own.

        Raises:
            InvalidRequest, TooLarge: the connection does what it may not.
        """
        self._note(piece)
        if piece.index in self._ended:
            raise InvalidRequest(f"candidate {piece.index} was ended before", param="index")
        if piece.index in self._failed:
            return  # which the client could not know yet
        growing = self._growing.get(piece.index)
        if growing is None:
            growing = self._growing[piece.index] = GrowingCandidate(self._context, piece, self._limits.text_chars)
        size = growing.held + len(piece.text or piece.token_ids or ())
        with self._failing_alone(piece.index):
            self._extend(piece.index, growing, await self._encode(size, partial(growing.add, piece)))

    async def end(self, end: End) -> None:
        """A candidate is complete. Raises `InvalidRequest` for one that never began, or ended before."""
        self.active = time.monotonic()
        if end.index in self._failed:
            return
        growing = self._growing.pop(end.index, None)
        if growing is None:
            raise InvalidRequest(f"candidate {end.index} has no pieces, or was ended before", param="index")
        self._ended.add(end.index)
        self._forget_peek(end.index, "dropped")
        with self._failing_alone(end.index):
            ending = await self._encode(growing.held, partial(growing.end, end.index))
            seat = self._seat(ending.cut)
            self._batcher.extend(seat, end.index, ending.ids)
            self._owed[end.index] = ending.tokens
            self._batcher.finish(seat, end.index)
            for other in self._seats.values():
                if other is not seat:  # which it peeked at before its cut was certain
                    self._batcher.drop(other, end.index)

    async def peek(self, peek: Peek) -> None:
        """Answer with what a candidate were worth if it ended here, as long as it does not end before that.

        Raises:
            InvalidRequest: the candidate never began, or ended before.
        """
        self.active = time.monotonic()
        if peek.index in self._failed:
            return
        growing = self._growing.get(peek.index)
        if growing is None:
            raise InvalidRequest(f"candidate {peek.index} has no pieces, or was ended before", param="index")
        with self._failing_alone(peek.index):
            if peek.index in self._peeked or peek.index in self._untold:
                message = f"candidate {peek.index} has a peek that is not answered yet; wait for its partial"
                raise InvalidRequest(message, param="index")
            ending = await self._encode(growing.held, growing.ending)
            self._peeked[peek.index] = ending.tokens, self.active
            self._batcher.peek(self._seat(ending.cut), peek.index, ending.ids)

    def drop(self, drop: Drop) -> None:
        """Give a candidate up that nobody wants any more. Raises `InvalidRequest` for one that never began."""
        self.active = time.monotonic()
        index = drop.index
        if index in self._growing or index in self._owed:
            self._give_up(index, "dropped", "cancelled")
        elif index not in self._ended and index not in self._failed:
            raise InvalidRequest(f"candidate {index} has no pieces", param="index")

    def told(self, index: int) -> None:
        """The candidate's partial score is on its way; so no more than one of them ever waits for a slow reader."""
        self._untold.discard(index)

    def close(self) -> None:
        """Free everything; what is not scored yet is not scored."""
        cancelled = len(self._owed) + len(self._growing)
        self._metrics.candidates.labels("cancelled").inc(cancelled)
        for index in list(self._peeked):
            self._forget_peek(index, "dropped")
        for seat in self._seats.values():
            self._batcher.leave(seat)
        self._seats.clear()
        self._owed.clear()
        self._growing.clear()

    def _note(self, piece: Piece) -> None:
        self.active = time.monotonic()
        self._metrics.live_pieces.inc()
        if piece.index >= self._limits.candidates:
            message = f"index {piece.index}: a connection may have {self._limits.candidates} candidates"
            raise InvalidRequest(message, param="index")
        text, ids = piece.text or "", piece.token_ids or ()
        self._bytes += len(text.encode("utf-8", "surrogatepass")) + 4 * len(ids)
        if self._bytes > self._limits.content_bytes:
            raise TooLarge(f"a connection may send {self._limits.content_bytes} bytes of candidates", param="text")

    async def _encode(self, size: int, step: Callable[[], _T]) -> _T:
        """What a step gives; off the event loop when that takes long."""
        return step() if size <= _LARGE else await self._off_loop(step, self._deadline)

    @contextmanager
    def _failing_alone(self, index: int) -> Iterator[None]:
        try:
            yield
        except LiveError as error:
            self._fail(index, self._refusal(error, str(index)))
        except DeadlineExceeded:
            raise
        except ServiceError as error:
            self._fail(index, error)

    def _extend(self, index: int, growing: GrowingCandidate, ids: list[int]) -> None:
        if growing.cut is not None and ids and index not in self._failed:
            self._batcher.extend(self._seat(growing.cut), index, ids)

    def _seat(self, cut: int) -> Seat:
        known = self._seats.get(cut)
        if known is None:
            if len(self._seats) >= _MAX_SEATS:
                raise InvalidRequest("too many candidates begin in different odd ways; use POST /v1/score")
            prompt = self._context.prompt[:cut]
            known = self._seats[cut] = self._batcher.open(self._engine, prompt, self._deadline, self._hear)
        return known

    def _hear(self, index: int | None, outcome: Outcome) -> None:
        """A score or a failure arrives from the engine."""
        if index is None:
            self._send(outcome if isinstance(outcome, ServiceError) else InternalError("a score of no candidate"))
        elif isinstance(outcome, ServiceError):
            if index not in self._failed:  # nor dropped, while the pass was under way
                self._fail(index, outcome)
        elif isinstance(outcome, Peeked):
            self._hear_partial(index, outcome.score)
        elif index in self._owed:
            self.active = time.monotonic()
            self._send(Score(index=index, score=outcome, tokens=self._owed.pop(index)))

    def _hear_partial(self, index: int, score: float) -> None:
        if index not in self._peeked:  # the candidate ended meanwhile
            return
        if not math.isfinite(score):
            self._fail(index, InternalError("the model gave a partial score that is not a number"))
            return
        tokens, asked = self._peeked[index]
        self._forget_peek(index, "answered")
        self.active = time.monotonic()
        self._metrics.live_partial_seconds.observe(self.active - asked)
        self._untold.add(index)
        self._send(Partial(index=index, score=score, tokens=tokens))

    def _forget_peek(self, index: int, result: str) -> None:
        if self._peeked.pop(index, None) is not None:
            self._metrics.live_peeks.labels(result).inc()

    def _fail(self, index: int, error: ServiceError) -> None:
        """Give one candidate up and say why; the others go on."""
        self._give_up(index, "failed", "failed")
        self._send(error_frame(error, index))

    def _give_up(self, index: int, peek: str, candidate: str) -> None:
        """Free what a candidate holds; these words are what became of its peek, if there is one, and of itself."""
        self._forget_peek(index, peek)
        self._growing.pop(index, None)
        self._owed.pop(index, None)
        self._failed.add(index)
        for seat in self._seats.values():
            self._batcher.drop(seat, index)
        self._metrics.candidates.labels(candidate).inc()

    def _refusal(self, error: LiveError, param: str) -> ServiceError:
        if isinstance(error, SequenceTooLong):
            self._metrics.rejections.labels("too_long").inc()
            return InvalidRequest(f"{param}: {error}", param=param, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
        if isinstance(error, LiveBudgetExceeded):
            self._metrics.rejections.labels("live_memory").inc()
            wait = self._batcher.retry_after()
            return Unavailable(f"{error}; try again later", code=ErrorCode.REWARD_OVERLOADED, retry_after=wait)
        return InternalError("the engine refused a candidate's ids")


def error_frame(error: ServiceError, index: int | None = None, code: str | None = None) -> Error:
    """An error as the client reads it."""
    known = code or error.code.value
    return Error(index=index, code=known, message=error.message, param=error.param, retry_after=error.retry_after)
