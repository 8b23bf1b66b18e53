"""The schedule: every sequence in cells of a fixed number of tokens, counted from its own beginning.

A cell is what one attention call computes: its rows against everything before them, up to the cell's own end. The
shape of that call follows from (length of the prompt, place of the cell, rows in the cell) and from nothing else, and
a later token never changes it. So it is all one whether a candidate came whole, or in pieces over a minute: the same
calls are made, and the score has the same bits.

The last layer computes its output only for rows whose score is asked for. Which cell is a candidate's last shows only
when a token follows or the candidate ends: until then a full cell waits. After the last token one cell is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from acemath_reward.ports import PromptGroup, TokenIds

if TYPE_CHECKING:
    from acemath_reward.engine.budget import Account


@dataclass(eq=False, slots=True)
class Track:
    """A prompt, or one candidate behind it: the tokens whose keys and values its later cells see.

    Attributes:
        parent: the prompt's track; None for a prompt, and for a candidate without one.
        first: position of its first token in the whole sequence.
        total: its tokens, for a prompt; None for a candidate, which may grow.
        account: pays for kept keys and values; None if they are not kept beyond the pass.
        length: tokens whose keys and values are kept.
        kept: their keys and values, one tensor `[layers, tokens, 2, kv_heads, head_dim]` for each pass.
        reserved: bytes that the account holds for it.
        closed: nobody wants it any more; what it kept is free.
    """

    parent: Track | None
    first: int
    total: int | None = None
    account: Account | None = None
    length: int = 0
    kept: tuple[Tensor, ...] = ()
    reserved: int = 0
    closed: bool = False

    @property
    def gone(self) -> bool:
        """Whether its cells can no longer be computed."""
        return self.closed or (self.parent is not None and self.parent.closed)

    def beginning(self, tokens: int) -> tuple[Tensor, ...]:
        """What is kept of its first `tokens`, as it lies in memory: nothing is copied."""
        parts: list[Tensor] = []
        for part in self.kept:
            if tokens <= 0:
                break
            parts.append(part if part.shape[1] <= tokens else part[:, :tokens])
            tokens -= part.shape[1]
        return tuple(parts)


@dataclass(frozen=True, slots=True, eq=False)
class GridCell:
    """The rows of one attention call (`ports.Cell`).

    Attributes:
        track: whose tokens they are.
        start: tokens of the track before the cell.
        ids: its tokens.
        scored: whether the score of the last row is asked for.
    """

    track: Track = field(repr=False)
    start: int
    ids: TokenIds
    scored: bool

    @property
    def tokens(self) -> int:
        """Rows that the engine computes for it."""
        return len(self.ids)


def cut(track: Track, ids: Sequence[int], size: int, *, start: int = 0, scored: bool = False) -> list[GridCell]:
    """Cells of `size` tokens out of all of a track's `ids`, from token `start` (a multiple of `size`) on.

    Args:
        track: whose tokens they are.
        ids: the track's tokens from its beginning.
        size: tokens of a whole cell.
        start: the first token that is not computed yet.
        scored: whether the last of `ids` is to be scored.
    """
    cells = [
        GridCell(track, first, tuple(ids[first : first + size]), scored and first + size >= len(ids))
        for first in range(start, len(ids), size)
    ]
    return cells


def cells_of(group: PromptGroup, size: int) -> list[GridCell]:
    """The cells of a group that is there as a whole, candidates in order; nothing of it is kept."""
    prompt = Track(None, 0, total=len(group.prompt)) if group.prompt else None
    cells = cut(prompt, group.prompt, size) if prompt else []
    for candidate in group.candidates:
        cells += cut(Track(prompt, len(group.prompt)), candidate, size, scored=True)
    return cells
