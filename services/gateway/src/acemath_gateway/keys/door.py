"""What a key may use: requests a minute, generated tokens a minute, candidates being made at once.

    SolveService ──► QuotaDoor.charged  ──► QuotaStore.enter   a request of the bucket, and the candidates it may make
                          the block                              (429 when there is none)
                     ◄── its end         ──► QuotaStore.leave   the tokens that were generated, off the other bucket

Both buckets hold a minute's worth and fill at that rate. How many tokens a request generates is known afterwards: it is
let in while the bucket holds any, then pays what it used, and the bucket may be in debt until it has filled up again.
Every generated token counts, of candidates that lost and of requests that were broken off too, as soon as a candidate
is complete. A request that was not started (503, and the caller left while it waited) gives its place in the first
bucket back; an answer that is replayed for its Idempotency-Key costs nothing. Whatever waits for places at the door
counts as being made: a caller cannot fill the queue with what it may not run.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from acemath_core.admin import Quotas
from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, InvalidRequest, QuotaExceeded
from acemath_gateway.keys.quotas import Bill, QuotaKind, QuotaStore, Visit
from acemath_gateway.keys.records import KeyCaller
from acemath_gateway.keys.told import tell_bill


class QuotaDoor:
    """Charges jobs to the keys that asked for them.

    Args:
        store: where keys' use is counted.
    """

    def __init__(self, store: QuotaStore) -> None:
        self._store = store

    def charged(
        self, caller: KeyCaller | None, sequences: int, deadline: Deadline, *, patience_seconds: float = 0.0
    ) -> AbstractAsyncContextManager[Bill]:
        """A place in the caller's quotas for the length of the block; tell the bill every event.

        Args:
            caller: whose quotas; None for nobody's.
            sequences: candidates in flight at once.
            deadline: the block has ended by then.
            patience_seconds: how long a place is waited for.

        Raises:
            InvalidRequest: more sequences than the key may ever have in flight.
            QuotaExceeded: (`requests_…`, `tokens_…`, `sequences_quota_exceeded`, with `Retry-After`) not now.
            Unavailable: as `QuotaStore.enter`.
        """
        if caller is None or not caller.quotas:
            return nullcontext(Bill())
        return self._charged(Visit(uuid.uuid4().hex, caller.id, caller.quotas, sequences, deadline), patience_seconds)

    @asynccontextmanager
    async def _charged(self, visit: Visit, patience_seconds: float) -> AsyncIterator[Bill]:
        _check_possible(visit.quotas, visit.sequences)
        bill = Bill(visit.quotas)
        tell_bill(bill)
        await self._enter(visit, bill, patience_seconds)
        try:
            yield bill
        finally:
            self._store.leave(visit, tokens=bill.tokens, started=bill.started)

    async def _enter(self, visit: Visit, bill: Bill, patience_seconds: float) -> None:
        patience = Deadline.after(patience_seconds)
        while True:
            standing = bill.standing = await self._store.enter(visit)
            if standing is None or standing.refused is None:
                return
            if patience.expired():
                raise _refusal(visit.quotas, standing.refused, standing.retry_seconds)
            await asyncio.sleep(min(standing.retry_seconds, patience.remaining()))


def _check_possible(quotas: Quotas, sequences: int) -> None:
    most = quotas.sequences_in_flight
    if most is not None and sequences > most:
        raise InvalidRequest(f"this API key may have at most {most} candidates in flight; ask for fewer", param="n")


def _refusal(quotas: Quotas, kind: QuotaKind, retry_seconds: float) -> QuotaExceeded:
    said, code = {
        QuotaKind.REQUESTS: (f"{quotas.requests_per_minute} requests a minute", ErrorCode.REQUESTS_QUOTA_EXCEEDED),
        QuotaKind.TOKENS: (f"{quotas.tokens_per_minute} generated tokens a minute", ErrorCode.TOKENS_QUOTA_EXCEEDED),
        QuotaKind.SEQUENCES: (f"{quotas.sequences_in_flight} candidates in flight", ErrorCode.SEQUENCES_QUOTA_EXCEEDED),
    }[kind]
    return QuotaExceeded(
        f"this API key's quota of {said} is used up; try again after the time in Retry-After",
        code=code,
        retry_after=retry_seconds,
    )
