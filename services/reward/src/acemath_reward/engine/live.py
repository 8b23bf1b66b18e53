"""Candidates that are still being written: what came, what of it is computed, what could be.

A peek is a fork: a track of its own behind the same prompt, which begins with the whole cells that its candidate has
computed, shared and not copied. What is left, at most a cell and what is not certain yet, is computed for it alone by
the schedule of a candidate that ends there, so its score has the bits of one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from acemath_reward.engine.budget import Account
from acemath_reward.engine.cells import Track, cut
from acemath_reward.ports import CandidateEnded, DueCell, PeekPending, SequenceTooLong, TokenIds


@dataclass(slots=True)
class _Candidate:
    track: Track
    ids: list[int] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True, slots=True)
class _Fork:
    """A peek.

    Attributes:
        track: its own; closed when it has its score, or nobody wants it.
        ids: of the candidate that ended there.
        shared: tokens of them whose keys and values are the growing candidate's.
    """

    track: Track
    ids: TokenIds
    shared: int


class GridSession:
    """One prompt and its growing candidates (`ports.LiveSession`).

    Args:
        prompt: shared ids; may be empty.
        cell_tokens: tokens of a whole cell.
        max_tokens: of prompt and candidate together.
        account: pays for what is kept.

    Raises:
        LiveBudgetExceeded: the prompt does not fit.
        SequenceTooLong: the prompt leaves no room.
    """

    def __init__(self, prompt: TokenIds, cell_tokens: int, max_tokens: int, account: Account) -> None:
        self._prompt_ids, self._size, self._max_tokens, self._account = prompt, cell_tokens, max_tokens, account
        self._check_length(len(prompt) + 1)
        self._prompt = self._new_track(None, 0, len(prompt)) if prompt else None
        self._candidates: dict[int, _Candidate] = {}
        self._forks: dict[int, _Fork] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """See the port."""
        return self._account.held

    def extend(self, candidate: int, ids: Sequence[int]) -> None:
        """See the port."""
        with self._lock:
            growing = self._growing(candidate)
            known = growing or _Candidate(Track(self._prompt, len(self._prompt_ids), account=self._account))
            self._check_length(len(self._prompt_ids) + len(known.ids) + len(ids))
            self._account.reserve(known.track, len(ids))
            known.ids.extend(ids)
            self._candidates[candidate] = known

    def finish(self, candidate: int) -> None:
        """See the port."""
        with self._lock:
            growing = self._growing(candidate)
            if growing is None or not growing.ids:
                raise CandidateEnded(f"candidate {candidate} has no tokens to be scored")
            growing.finished = True
            self._drop_fork(candidate)

    def peek(self, candidate: int, closing: Sequence[int]) -> int:
        """See the port."""
        with self._lock:
            growing = self._growing(candidate)
            own = growing.ids if growing else []
            ids = (*own, *closing)
            self._check_peek(candidate, ids)
            shared = max(0, len(own) - 1) // self._size * self._size
            fork = _Fork(Track(self._prompt, len(self._prompt_ids), account=self._account), ids, shared)
            self._account.reserve(fork.track, (len(ids) - 1) // self._size * self._size - shared)
            self._forks[candidate] = fork
            return len(ids) - shared

    def drop(self, candidate: int) -> None:
        """See the port."""
        with self._lock:
            self._drop_fork(candidate)
            known = self._candidates.get(candidate)
            if known is not None:
                known.finished, known.ids = True, []
                self._account.free(known.track)

    def due(self) -> list[DueCell]:
        """See the port."""
        with self._lock:
            if self._closed:
                return []
            cells: list[DueCell] = []
            if self._prompt is not None:
                prompt = cut(self._prompt, self._prompt_ids, self._size, start=self._prompt.length)
                cells += [DueCell(None, cell) for cell in prompt]
            for index, candidate in self._candidates.items():
                cells += self._of_candidate(index, candidate)
            for index, fork in self._forks.items():
                cells += self._of_fork(index, fork)
            return cells

    def close(self) -> None:
        """See the port."""
        with self._lock:
            self._closed = True
            tracks = [candidate.track for candidate in self._candidates.values()]
            tracks += [fork.track for fork in self._forks.values()]
            for track in [*tracks, *([self._prompt] if self._prompt else [])]:
                self._account.free(track)
            self._candidates.clear()
            self._forks.clear()

    def _new_track(self, parent: Track | None, first: int, tokens: int) -> Track:
        track = Track(parent, first, total=tokens, account=self._account)
        self._account.reserve(track, tokens)
        return track

    def _growing(self, candidate: int) -> _Candidate | None:
        """The candidate if it has begun; refuses one that takes no more ids."""
        if self._closed:
            raise CandidateEnded("the session is closed")
        known = self._candidates.get(candidate)
        if known is not None and known.finished:
            raise CandidateEnded(f"candidate {candidate} was finished or dropped before")
        return known

    def _of_candidate(self, index: int, candidate: _Candidate) -> list[DueCell]:
        """Its next cells: whole ones that a token follows, and after `finish` the last one."""
        if candidate.track.closed:
            return []
        start = candidate.track.length
        whole = (len(candidate.ids) - 1) // self._size * self._size
        ids = candidate.ids if candidate.finished else candidate.ids[:whole]
        cells = cut(candidate.track, ids, self._size, start=start, scored=candidate.finished)
        return [DueCell(index, cell) for cell in cells]

    def _of_fork(self, index: int, fork: _Fork) -> list[DueCell]:
        """Its cells, when the candidate's that it shares are computed."""
        if fork.track.closed:
            return []
        if fork.track.length < fork.shared:
            own = self._candidates[index].track
            if own.length < fork.shared:
                return []
            fork.track.kept, fork.track.length = own.beginning(fork.shared), fork.shared
        cells = cut(fork.track, fork.ids, self._size, start=fork.track.length, scored=True)
        return [DueCell(index, cell, peek=True) for cell in cells]

    def _check_peek(self, candidate: int, ids: TokenIds) -> None:
        if not ids:
            raise CandidateEnded(f"candidate {candidate} has no tokens to be scored")
        known = self._forks.get(candidate)
        if known is not None and not known.track.closed:
            raise PeekPending(f"candidate {candidate} has a peek without a score")
        self._check_length(len(self._prompt_ids) + len(ids))

    def _drop_fork(self, candidate: int) -> None:
        fork = self._forks.pop(candidate, None)
        if fork is not None:
            self._account.free(fork.track)

    def _check_length(self, tokens: int) -> None:
        if tokens > self._max_tokens:
            raise SequenceTooLong(f"prompt and candidate have {tokens} tokens; the model takes {self._max_tokens}")
