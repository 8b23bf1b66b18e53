"""The one moment of a wave at which its hopeless candidates are stopped (`rejection` says which those are)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_gateway.board import Board
from acemath_gateway.ports import ScoringSession
from acemath_gateway.rejection import RejectRules, hopeless

_PEEK_SECONDS = 5.0
"""Longest wait for the partial scores; candidates go on meanwhile, so that a late verdict saves little."""


@dataclass
class Checkpoint:
    """One wave's checkpoint.

    Attributes:
        rules: who is stopped, and when.
        board: what there is.
        session: gives partial scores.
        indices: the wave's candidates.
        scoring: the tasks that wait for final scores now.
        cutoff: when the job's time is over.
        reject: stops a candidate that has this partial score.
    """

    rules: RejectRules
    board: Board
    session: ScoringSession
    indices: range
    scoring: Callable[[], Collection[asyncio.Task[None]]]
    cutoff: Deadline
    reject: Callable[[int, float], None]
    _judging: asyncio.Task[None] | None = None

    def look(self, tasks: asyncio.TaskGroup) -> None:
        """Something came of a candidate; when that was the last thing to wait for, judge the wave beside the job."""
        if self._judging is None and self._is_due():
            self._judging = tasks.create_task(self._judge(), name="judge a wave")

    def leave(self) -> None:
        """The wave is over: there is nothing left to stop."""
        if self._judging is not None:
            self._judging.cancel()

    def _is_due(self) -> bool:
        """Whether each candidate has ended or come far enough, and one may be stopped."""
        if self.rules.kept(len(self.indices)) == len(self.indices):
            return False
        after, unfinished = self.rules.after_tokens, self._unfinished()
        return bool(unfinished) and all(self.board.tokens_of(index) >= after for index in unfinished)

    async def _judge(self) -> None:
        for index, score in (await self._hopeless()).items():
            self.reject(index, score)

    async def _hopeless(self) -> dict[int, float]:
        """The candidates to stop now → their partial scores; none when not all scores can be had in time."""
        partial: dict[int, float] = {}
        try:
            async with asyncio.timeout(min(_PEEK_SECONDS, self.cutoff.remaining())):
                partial = await self._peeks()
                if scoring := set(self.scoring()):
                    await asyncio.wait(scoring)
        except TimeoutError:
            return {}
        known = {index: score for index in self.indices if (score := self._score(index, partial)) is not None}
        unfinished = self._unfinished()
        if not known.keys() >= set(unfinished):
            return {}
        return {index: partial[index] for index in hopeless(self.rules, known, unfinished)}

    async def _peeks(self) -> dict[int, float]:
        asked = self._unfinished()
        scores = await asyncio.gather(*(self.session.peek(index) for index in asked))
        return {index: score for index, score in zip(asked, scores, strict=True) if score is not None}

    def _score(self, index: int, partial: dict[int, float]) -> float | None:
        """The candidate's final score, else its partial one; of one that ended without a score, what there is."""
        final = self.board.score_of(index)
        return partial.get(index) if final is None else final

    def _unfinished(self) -> list[int]:
        return [index for index in self.indices if not self.board.has_ended(index)]
