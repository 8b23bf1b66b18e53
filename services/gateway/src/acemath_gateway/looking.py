"""A look at the board of an adaptive job: is its answer settled? Compares the answers, then asks the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_core.wire import Selection, StopReason
from acemath_gateway.board import Board
from acemath_gateway.choosing import Judge, classes_of, may_vote
from acemath_gateway.jobs import SolvedItem, SolveJob
from acemath_gateway.stopping import StopRules, cannot_change, may_be_certain, settled


@dataclass(frozen=True, slots=True)
class Look:
    """Looks at one job's board. What could not be compared in time counts as different, so that less is settled.

    Attributes:
        job: what is asked.
        board: what there is.
        judge: says which answers are the same.
        rules: how sure to be.
        cutoff: until when answers are compared.
    """

    job: SolveJob
    board: Board
    judge: Judge
    rules: StopRules
    cutoff: Deadline

    async def between_waves(self) -> StopReason | None:
        """Why the answer is settled by the waves so far, all of whose scores are there; None when it is not."""
        items = await self._items()
        return settled(self.rules, self._selection(), items, self._remaining(items))

    async def within_a_wave(self) -> bool:
        """Whether the answer cannot change any more, whatever is still being written."""
        finished, remaining = self.board.finished, self.board.expected - self.board.finished
        if finished < self.rules.at_least or remaining <= 0:
            return False
        if not may_be_certain(self._selection(), finished, remaining):
            return False
        items = await self._items()
        return cannot_change(self._selection(), items, self._remaining(items))

    async def _items(self) -> Sequence[SolvedItem]:
        """The candidates that had ended when this was asked, with classes of answers."""
        classes = await classes_of(self.board, self.cutoff, self.judge)
        return [item for item in self.board.items(classes) if item.index in classes]

    def _remaining(self, items: Sequence[SolvedItem]) -> int:
        return self.board.expected - len(items)

    def _selection(self) -> Selection:
        """How the answer will be chosen, as far as it is known now."""
        return Selection.MAJORITY if self.board.scorer_away and may_vote(self.job) else self.job.selection
