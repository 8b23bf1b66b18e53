"""A job followed from outside: its results in the order of the file, and its events in the order of their coming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from acemath_core.errors import NotFound
from acemath_core.jobs import JobState
from acemath_gateway.jobqueue.store import JobStore, StoredJob
from acemath_gateway.jobqueue.views import cancelled_row

LOOK_SECONDS = 0.5
_ROWS_AT_A_TIME = 20  # one call to the store, and one piece on the wire
_FINISHED_IN_ONE_EVENT = 500


async def job_of_caller(store: JobStore, owner: str, job_id: str, *, after: int = 0, limit: int = 0) -> StoredJob:
    """The caller's job.

    Raises:
        NotFound: there is none, or it is another's.
        Unavailable: (`jobs_unavailable`) the store is away.
    """
    stored = await store.read(job_id, after=after, limit=limit)
    if stored is None or stored.owner != owner:
        raise NotFound("there is no such job; it may have been forgotten some time after its end", param="job_id")
    return stored


async def rows(store: JobStore, job: StoredJob, offset: int, limit: int) -> AsyncGenerator[bytes, None]:
    """The results of up to `limit` lines after the first `offset`, each with a line feed at its end, some at a time.

    They come in the order of the file and without a gap: a job that has not ended gives those before the first line
    that has no result yet. One that has ended gives every line; those without a result are `cancelled`.
    """
    end = min(offset + limit, job.total)
    for first in range(offset + 1, end + 1, _ROWS_AT_A_TIME):
        lines = range(first, min(first + _ROWS_AT_A_TIME, end + 1))
        found = await store.results(job.id, lines)
        if not job.state.ended and None in found:
            found = found[: found.index(None)]
        if found:
            yield b"".join((row or cancelled_row(line)) + b"\n" for line, row in zip(lines, found, strict=False))
        if len(found) < len(lines):
            return


async def changes(store: JobStore, owner: str, job_id: str, after: int) -> AsyncGenerator[tuple[int, StoredJob], None]:
    """The job whenever it has changed, with the lines that finished since and how many those are from its beginning on.

    Args:
        store: where jobs are kept.
        owner: id of the caller's key.
        job_id: which one.
        after: finished lines that are known already.
    """
    seen: tuple[JobState, int, int] | None = None
    while True:
        stored = await job_of_caller(store, owner, job_id, after=after, limit=_FINISHED_IN_ONE_EVENT)
        after += len(stored.finished)
        now = (stored.state, after, stored.running)
        if now != seen:
            yield after, stored
        seen = now
        if stored.state.ended and after >= stored.done:
            return
        if len(stored.finished) < _FINISHED_IN_ONE_EVENT:
            await asyncio.sleep(LOOK_SECONDS)
