"""The attention of a pass, divided among threads: pure, so that it can be read and tested by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from acemath_reward.engine.packing import Run, Span

FINER = 2
"""Shares for each thread: one that is held up leaves the rest of its work to the others."""


def shared(runs: Sequence[Run], threads: int, most: int | None = None) -> list[list[Run]]:
    """The runs in shares of about the same work, the largest first; a long run's spans may go to several.

    Longest processing time first (Graham 1969): each piece goes to the share that has least.

    Args:
        runs: of the pass.
        threads: that take the shares.
        most: shares that there is memory for; None for any number.
    """
    count = FINER * threads if most is None else min(FINER * threads, most)
    if threads == 1 or count == 1 or not runs:
        return [list(runs)] if runs else []
    limit = sum(map(_work, runs)) / count
    pieces = sorted((piece for run in runs for piece in _pieces(run, limit)), key=_work, reverse=True)
    shares: list[list[Run]] = [[] for _ in range(count)]
    loads = [0] * len(shares)
    for piece in pieces:
        least = loads.index(min(loads))
        shares[least].append(piece)
        loads[least] += _work(piece)
    return [shares[k] for k in sorted(range(len(shares)), key=loads.__getitem__, reverse=True) if shares[k]]


def _pieces(run: Run, limit: float) -> Iterator[Run]:
    """The run in parts of no more work than the limit, or of one span."""
    spans: list[Span] = []
    for span in run.spans:
        if spans and _work(replace(run, spans=(*spans, span))) > limit:
            yield replace(run, spans=tuple(spans))
            spans = []
        spans.append(span)
    yield replace(run, spans=tuple(spans))


def _work(run: Run) -> int:
    """Products of a query and a key."""
    return sum((span.rows.stop - span.rows.start) * span.keys for span in run.spans)
