"""The seam between the service and its engine: token ids in, one float32 number for each candidate out.

There is one forward pass, `RewardModel.forward`, over cells: stretches of at most `cell_tokens` tokens. Cells come from
whole groups (`plan`) and from candidates that are still being written (`open`, then `LiveSession.due`); one pass may
hold both, from any number of sessions. A score has the same bits either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Candidates that share a prompt, which is computed once for all of them.

    Attributes:
        prompt: ids that every candidate of the group begins with; may be empty.
        candidates: what follows the prompt, at least one id each; scored at the last one.
    """

    prompt: TokenIds
    candidates: tuple[TokenIds, ...]

    @property
    def tokens(self) -> int:
        """Rows that the engine computes for this group."""
        return len(self.prompt) + sum(map(len, self.candidates))


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """Bytes of keys and values that live sessions may hold.

    Attributes:
        total_bytes: all sessions of one engine together.
        session_bytes: one session.
    """

    total_bytes: int = 1 << 30
    session_bytes: int = 1 << 29


DEFAULT_LIVE_LIMITS = LiveLimits()


class Cell(Protocol):
    """A piece of work for one forward pass; made by `plan` and `due`, opaque but for its size and purpose."""

    @property
    def tokens(self) -> int:
        """Rows that the engine computes for it."""
        ...

    @property
    def scored(self) -> bool:
        """Whether it ends a candidate, so that the pass gives a score for it."""
        ...


@dataclass(frozen=True, slots=True)
class DueCell:
    """A cell of a live session.

    Attributes:
        candidate: whose tokens it computes; None for the prompt's.
        cell: what `forward` takes.
        peek: it is part of a peek, and a score that comes of it is a partial one.
    """

    candidate: int | None
    cell: Cell
    peek: bool = False


class LiveSession(Protocol):
    """One prompt and its growing candidates, whose keys and values are kept until they are scored or dropped.

    Every method may be called from any thread and returns at once; none computes. What is computed, and when, is the
    caller's: `due` says what could be, `forward` does it.
    """

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values, those of tokens that wait for their cell included."""
        ...

    def extend(self, candidate: int, ids: Sequence[int]) -> None:
        """Append ids below `vocab_size` to a candidate, which begins with its first ids.

        Raises:
            LiveBudgetExceeded: they do not fit the byte budget; nothing was appended.
            SequenceTooLong: prompt and candidate would exceed `max_tokens`; nothing was appended.
            CandidateEnded: the candidate was finished or dropped, or the session is closed.
        """
        ...

    def finish(self, candidate: int) -> None:
        """No more ids come: its last cell becomes due, and the pass that computes it gives its score.

        A peek of it that has no score yet is dropped.

        Raises:
            CandidateEnded: it has no ids, was finished or dropped before, or the session is closed.
        """
        ...

    def peek(self, candidate: int, closing: Sequence[int]) -> int:
        """Ask what a candidate were worth that ended here: with its ids so far, of which there may be none, and these.

        Cells become due, the last of which gives the number that the whole has; more ids, and `finish`, may follow at
        once, and neither ids nor score of the candidate itself are changed.

        Returns:
            Rows that are computed for it, the candidate's own cells and the prompt not among them.

        Raises:
            LiveBudgetExceeded: what is kept between its cells does not fit the byte budget.
            SequenceTooLong: prompt, ids and closing would exceed `max_tokens`.
            PeekPending: an earlier one of this candidate has no score yet.
            CandidateEnded: there are no ids, the candidate was finished or dropped, or the session is closed.
        """
        ...

    def drop(self, candidate: int) -> None:
        """Forget a candidate, its peek too, and free what they hold; one that is unknown or scored is left as it is."""
        ...

    def due(self) -> list[DueCell]:
        """What can be computed now: the prompt's cells first, then each candidate's in order, then those of peeks.

        Nothing is due twice once it was computed. A pass may take any beginning of each candidate's cells, with all of
        the prompt's before them. Call it on the thread that calls `forward`: cells that are handed in a second time, or
        out of order, are refused.
        """
        ...

    def close(self) -> None:
        """Free everything; cells of a pass under way are finished and forgotten. May be called twice."""
        ...


class ServerEnd(StrEnum):
    """Why a server does not score."""

    NO_PORT = "no_port"
    NOT_STARTED = "not_started"
    START_TIMEOUT = "start_timeout"
    EXITED = "exited"
    ENGINE_DEAD = "engine_dead"
    STALLED = "stalled"
    WRONG_ANSWER = "wrong_answer"
    CLOSED = "closed"


class ServerFailure(Exception):
    """A server does not score; another one, with the same checkpoint, may.

    Attributes:
        end: why.
    """

    def __init__(self, end: ServerEnd, message: str) -> None:
        super().__init__(f"{end.value}: {message}")
        self.end = end


class ModelServer(Protocol):
    """The process that computes a model, where that is not this one. Every method is called on the event loop."""

    async def start(self) -> None:
        """Start it, once, and wait until it scores; cancelled, or failed, it is left for `close`.

        Raises:
            ServerFailure: it ended instead, took too long, or does not give scores.
        """
        ...

    async def close(self) -> None:
        """End it, started or not, within seconds; may be called twice."""
        ...

    def failure(self) -> ServerFailure | None:
        """Why it does not score any more, None while it does; at once, from what was seen last."""
        ...


class RewardModel(Protocol):
    """A loaded checkpoint. One thread at a time calls `forward` and `score`.

    The contract that makes scores comparable: a candidate's number has the same bits whichever groups, mates and
    order it is scored with, and whether it came whole or in pieces. A model with a `server` does not promise that.
    """

    @property
    def server(self) -> ModelServer | None:
        """The process that computes it, which has to be started before the first score; None: this one does."""
        ...

    @property
    def max_tokens(self) -> int:
        """Prompt and candidate together may have so many tokens."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        ...

    @property
    def cell_tokens(self) -> int:
        """Tokens of a whole cell: at most so many of a live candidate are left to compute after its last token."""
        ...

    @property
    def live_bytes(self) -> int:
        """Bytes that all live sessions hold now."""
        ...

    def plan(self, group: PromptGroup) -> list[Cell]:
        """The cells of a group that is there as a whole. They go into one pass together.

        The scored cells among them are the candidates', in order.
        """
        ...

    def open(self, prompt: TokenIds) -> LiveSession:
        """A session for candidates of this prompt, which may be empty.

        Raises:
            LiveBudgetExceeded: its prompt does not fit the byte budget.
            SequenceTooLong: the prompt leaves no room for a candidate.
        """
        ...

    def forward(self, cells: Sequence[Cell]) -> list[float | None]:
        """Compute the cells in one packed pass; blocks.

        Returns:
            For each cell the candidate's float32 score if it is `scored`, else None; None also for cells of a session
            that was closed, and of a candidate that was dropped, after they became due. A number may be NaN or
            infinite when the checkpoint overflows; the caller decides what that means.

        Raises:
            ValueError: cells that cannot be computed together: one given twice or computed before, a gap, or a prompt
                that is not complete. A pass that raises has changed nothing and may be tried again.
        """
        ...

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        """One float32 number for each candidate, in the groups' order: `plan` and `forward` in one call; blocks."""
        ...

    def facts(self) -> Mapping[str, object]:
        """What an operator should see: architecture, dtype, device, threads."""
        ...


class ModelLoader(Protocol):
    """Loads the checkpoint in a directory; blocks. Raises `UnsupportedCheckpoint` when it cannot be served."""

    def __call__(self, directory: Path) -> RewardModel:
        """The loaded model."""
        ...


class UnsupportedCheckpoint(Exception):
    """The checkpoint asks for something that the engine does not implement; the message says what."""


class LiveError(Exception):
    """A live session cannot take what it was given; the session itself goes on."""


class LiveBudgetExceeded(LiveError):
    """The session, or all of them together, would hold more bytes than the limit."""


class SequenceTooLong(LiveError):
    """Prompt and candidate together have more tokens than the model takes."""


class CandidateEnded(LiveError):
    """The candidate takes no more ids, or has none to be scored."""


class PeekPending(LiveError):
    """The candidate's earlier peek has no score yet."""
