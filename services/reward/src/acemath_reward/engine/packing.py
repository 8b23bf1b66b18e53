"""Cells to one packed pass: no padding between sequences, every row once, rows of one track side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acemath_reward.engine.cells import GridCell, Track
from acemath_reward.engine.tiling import Tiling

_FILLER_ID = 0  # rows that fill the last tile; nothing attends to them


@dataclass(frozen=True, slots=True)
class Span:
    """One attention call.

    Attributes:
        rows: of its queries.
        keys: how many of its run's keys it sees, from the sequence's beginning; the last `len(rows)` are its own.
    """

    rows: slice
    keys: int


@dataclass(frozen=True, slots=True)
class Run:
    """The cells of one track in this pass.

    Attributes:
        track: whose.
        before: keys and values of the tokens before them, kept by earlier passes, in order:
            `[layers, tokens, 2, kv_heads, head_dim]` each.
        rows: where this pass computes the rest of them: the prompt's rows if it is part of the pass, then the run's.
        spans: its cells.
    """

    track: Track
    before: tuple[Tensor, ...]
    rows: tuple[slice, ...]
    spans: tuple[Span, ...]

    @property
    def keys(self) -> int:
        """Of the whole sequence as far as it is computed with this pass."""
        kept = sum(part.shape[1] for part in self.before)
        fresh: int = sum(part.stop - part.start for part in self.rows)
        return kept + fresh


@dataclass(frozen=True, slots=True)
class Asked:
    """What the last layer computes.

    Attributes:
        rows: row of the pass of each of its queries, `[queries]`, filled up to a whole number of tiles.
        runs: attention over those queries; rows of spans count in them.
        out: which queries go on to the output projection and the MLP, `[outputs]`, filled up likewise.
        scored: position among the outputs of each scored row, in the order of the pass's scored cells.
    """

    rows: Tensor
    runs: tuple[Run, ...]
    out: Tensor
    scored: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """One forward pass.

    Attributes:
        ids: token ids, `[rows]`, filled up to a whole number of tiles.
        positions: position of each row in its own sequence, `[rows]`.
        runs: in the order of their rows.
        asked: what the last layer computes; None when no score is asked for.
        cells: index, among the cells handed in, of each cell whose score is asked for; as `Asked.scored`.
    """

    ids: Tensor
    positions: Tensor
    runs: tuple[Run, ...]
    asked: Asked | None
    cells: tuple[int, ...]


def pack(cells: Sequence[GridCell], tiling: Tiling, *, trim: bool) -> Packed | None:
    """Lay out the cells; None when nobody wants any of them any more.

    Args:
        cells: those of one track in their order.
        tiling: how many rows there may be.
        trim: see `device.Placement`.

    Raises:
        ValueError: a cell that is not the next of its track, or a candidate behind an incomplete prompt.
    """
    tracks, there = _wanted(cells)
    if not tracks:
        return None
    place, total = _places(tracks, cells)
    runs = tuple(_run(track, [cells[i] for i in indexes], place, there) for track, indexes in tracks.items())
    order = [i for indexes in tracks.values() for i in indexes]
    filler = tiling.filled(total) - total
    ids = [token for i in order for token in cells[i].ids]
    positions = [cells[i].track.first + cells[i].start + k for i in order for k in range(cells[i].tokens)]
    scored = tuple(i for i in order if cells[i].scored)
    return Packed(
        ids=torch.tensor(ids + [_FILLER_ID] * filler),
        positions=torch.tensor(positions + [0] * filler),
        runs=runs,
        asked=_asked(runs, [cells[i].scored for i in order], total, tiling, trim) if scored else None,
        cells=scored,
    )


@dataclass(frozen=True, slots=True)
class _Computed:
    """What is kept of a track, read once: it may be freed by another thread at any time."""

    kept: tuple[Tensor, ...]
    length: int


def _wanted(cells: Sequence[GridCell]) -> tuple[dict[Track, list[int]], dict[Track, _Computed]]:
    """The cells of each track that somebody wants, and what is there of those tracks and their prompts.

    What is there is read before it is asked whether anybody wants it: who frees a track says so first (`Budget`).
    """
    tracks: dict[Track, list[int]] = {}
    there: dict[Track, _Computed] = {}
    for index, cell in enumerate(cells):
        for track in (cell.track, cell.track.parent):
            if track is not None and track not in there:
                there[track] = _Computed(track.kept, track.length)
        if not cell.track.gone:
            tracks.setdefault(cell.track, []).append(index)
    return tracks, there


def _places(tracks: dict[Track, list[int]], cells: Sequence[GridCell]) -> tuple[dict[Track, slice], int]:
    """Rows of each track, and how many there are."""
    place: dict[Track, slice] = {}
    start = 0
    for track, indexes in tracks.items():
        place[track] = slice(start, start + sum(cells[i].tokens for i in indexes))
        start = place[track].stop
    return place, start


def _run(track: Track, cells: Sequence[GridCell], place: dict[Track, slice], there: dict[Track, _Computed]) -> Run:
    before, rows = _of_prompt(track.parent, place, there)
    own, known = place[track], there[track]
    spans, done = [], known.length
    for cell in cells:
        if cell.start != done:
            raise ValueError(f"a cell at token {cell.start} does not follow the {done} tokens that are computed")
        first = own.start + cell.start - known.length
        spans.append(Span(slice(first, first + cell.tokens), track.first + cell.start + cell.tokens))
        done += cell.tokens
    return Run(track, before + known.kept, (*rows, own), tuple(spans))


def _of_prompt(
    prompt: Track | None, place: dict[Track, slice], there: dict[Track, _Computed]
) -> tuple[tuple[Tensor, ...], tuple[slice, ...]]:
    if prompt is None:
        return (), ()
    rows = (place[prompt],) if prompt in place else ()
    if there[prompt].length + sum(part.stop - part.start for part in rows) != prompt.total:
        raise ValueError("a candidate's cell without all of its prompt")
    return there[prompt].kept, rows


def _asked(runs: Sequence[Run], scored: Sequence[bool], total: int, tiling: Tiling, trim: bool) -> Asked:
    """The scored cells' rows and, among them, the scored rows; or, untrimmed, every row."""
    flags = iter(scored)
    wanted: list[int] = []
    last: list[int] = []
    kept: list[Run] = []
    for run in runs:
        spans = []
        for span in run.spans:
            is_scored = next(flags)
            if not is_scored and trim:
                continue
            first = len(wanted)
            wanted.extend(range(span.rows.start, span.rows.stop))
            spans.append(Span(slice(first, len(wanted)), span.keys))
            if is_scored:
                last.append(len(wanted) - 1)
        if spans:
            kept.append(Run(run.track, run.before, run.rows, tuple(spans)))
    out = last if trim else range(total)
    positions = tuple(range(len(last))) if trim else tuple(last)
    return Asked(_index(wanted, tiling), tuple(kept), _index(out, tiling), positions)


def _index(rows: Iterable[int], tiling: Tiling) -> Tensor:
    """`rows` as a tensor, filled up to whole tiles with the first row."""
    listed = list(rows)
    return torch.tensor(listed + [0] * (tiling.filled(len(listed)) - len(listed)))
