"""A pass's attention divided among threads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acemath_reward.engine.cells import Track
from acemath_reward.engine.packing import Run, Span
from acemath_reward.engine.shares import FINER, shared

LENGTHS = st.lists(st.integers(1, 400), min_size=0, max_size=12)


def runs_of(lengths: list[int], cell: int = 64) -> list[Run]:
    found, start = [], 0
    for length in lengths:
        own = slice(start, start + length)
        firsts = range(0, length, cell)
        spans = [Span(slice(start + k, start + min(k + cell, length)), min(k + cell, length)) for k in firsts]
        found.append(Run(Track(None, 0), (), (own,), tuple(spans)))
        start += length
    return found


def work(share: list[Run]) -> int:
    return sum((span.rows.stop - span.rows.start) * span.keys for run in share for span in run.spans)


@given(LENGTHS, st.integers(1, 6))
def test_every_span_is_in_one_share_behind_its_own_keys(lengths: list[int], threads: int) -> None:
    runs = runs_of(lengths)
    shares = shared(runs, threads)
    spans = [(run.track, run.rows, span.rows.start) for share in shares for run in share for span in run.spans]
    assert sorted(start for _, _, start in spans) == sorted(span.rows.start for run in runs for span in run.spans)
    of = {run.track: run.rows for run in runs}
    assert all(rows == of[track] for track, rows, _ in spans)
    assert all(share for share in shares) and len(shares) <= (FINER * threads if threads > 1 else 1)


@given(LENGTHS, st.integers(2, 6))
def test_no_share_is_much_larger_than_its_part(lengths: list[int], threads: int) -> None:
    loads = [work(share) for share in shared(runs_of(lengths), threads)]
    largest_span = max((min(64, n) * n for n in lengths), default=0)
    assert loads == sorted(loads, reverse=True)
    assert all(load <= 2 * sum(loads) / (FINER * threads) + largest_span for load in loads)


@given(LENGTHS, st.integers(2, 6), st.integers(1, 12))
def test_there_are_no_more_shares_than_there_is_memory_for(lengths: list[int], threads: int, most: int) -> None:
    runs = runs_of(lengths)
    shares = shared(runs, threads, most)
    assert len(shares) <= most
    assert sum(map(work, shares)) == work(runs)


def test_one_thread_keeps_the_order() -> None:
    runs = runs_of([100, 5, 70])
    assert shared(runs, 1) == [runs]
    assert shared([], 1) == shared([], 3) == []
