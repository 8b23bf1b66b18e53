"""Tells of the ends of jobs: once, and again while that fails, by whichever gateway is first to see it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from acemath_core.errors import Unavailable
from acemath_gateway.jobqueue.hooks import Hooks, WebhookSender
from acemath_gateway.jobqueue.metrics import JobMetrics, NoticeOutcome
from acemath_gateway.jobqueue.signing import signed_headers
from acemath_gateway.jobqueue.store import JobStore, Notice, StoredJob
from acemath_gateway.jobqueue.views import job_of

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LEASE_SECONDS = 60.0  # several times what an attempt may take; then another gateway makes the next one


class Notifier:
    """Delivers webhooks.

    Args:
        store: where jobs are kept.
        sender: carries messages.
        hooks: whom they may go to, and the key that signs them.
        metrics: where attempts are counted.
        pauses: seconds between one attempt and the next; after the last attempt the message has failed.
    """

    def __init__(
        self,
        store: JobStore,
        sender: WebhookSender,
        hooks: Hooks,
        metrics: JobMetrics,
        pauses: Sequence[float],
    ) -> None:
        self._store, self._sender, self._hooks = store, sender, hooks
        self._metrics, self._pauses = metrics, tuple(pauses)

    async def run(self) -> None:
        """Deliver what is due until cancelled."""
        while True:
            with suppress(Unavailable):
                while (notice := await self._store.due_notice(_LEASE_SECONDS)) is not None:
                    await self._deliver(notice)
            await asyncio.sleep(_LOOK_SECONDS * random.uniform(0.7, 1.3))

    async def _deliver(self, notice: Notice) -> None:
        problem = await self._attempt(notice.job)
        again = self._pauses[notice.attempt - 1] if problem and notice.attempt <= len(self._pauses) else None
        outcome = NoticeOutcome.DELIVERED if problem is None else NoticeOutcome.FAILED
        outcome = outcome if again is None else NoticeOutcome.AGAIN
        self._metrics.notices.labels(outcome).inc()
        _log.info("webhook", extra={"job": notice.job.id, "attempt": notice.attempt, "outcome": outcome})
        await self._store.notice_done(notice.job.id, problem, again)

    async def _attempt(self, job: StoredJob) -> str | None:
        url, key = job.webhook_url or "", self._hooks.key
        problem = self._hooks.problem(url)  # again: what is allowed may have changed since the job was made
        if problem is not None or key is None:
            return problem or "this gateway has no key to sign with"
        body = message_of(job)
        headers = signed_headers(key, f"msg_{job.id}", int(time.time()), body)
        return await self._sender.send(url, headers, body)


def message_of(job: StoredJob) -> bytes:
    """The body: type, time and data as Standard Webhooks recommends; the same for every attempt."""
    ended = datetime.fromtimestamp(job.ended or job.created, UTC)
    data = job_of(job).model_dump(mode="json", exclude={"webhook"})
    message = {"type": f"job.{job.state}", "timestamp": ended.isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(message, separators=(",", ":")).encode()
