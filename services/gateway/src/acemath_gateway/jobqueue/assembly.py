"""Jobs put together: what the routes are given, and the worker that runs as long as the application does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from acemath_gateway.jobqueue.hooks import Hooks, WebhookSender
from acemath_gateway.jobqueue.intake import Intake
from acemath_gateway.jobqueue.metrics import JobMetrics
from acemath_gateway.jobqueue.notices import Notifier
from acemath_gateway.jobqueue.runs import LineRunner
from acemath_gateway.jobqueue.store import JobStore
from acemath_gateway.jobqueue.worker import Worker
from acemath_gateway.keys.book import KeyBook
from acemath_gateway.routes.job_parts import JobParts
from acemath_gateway.routes.parts import Parts
from acemath_gateway.settings import GatewaySettings
from acemath_gateway.shared import running


@asynccontextmanager
async def open_jobs(
    settings: GatewaySettings,
    store: JobStore,
    sender: WebhookSender,
    parts: Parts,
    book: KeyBook,
    ready: Callable[[], bool],
    metrics: JobMetrics,
) -> AsyncIterator[JobParts]:
    """Work on jobs for the length of the block.

    Args:
        settings: the gateway's settings.
        store: where jobs are kept.
        sender: carries webhooks.
        parts: the gateway as its other routes see it; lines go through the same door.
        book: whose quotas they are charged to.
        ready: whether lines may be taken now.
        metrics: where jobs are counted.
    """
    worker = Worker(
        store,
        LineRunner(parts.service, parts.limits, book.with_id),
        at_once=settings.job_lines_at_once,
        idle_seconds=settings.job_idle_seconds,
        ready=ready,
        metrics=metrics,
    )
    hooks = Hooks.of(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running("work on jobs", worker.run()))
        if hooks.key is not None:
            notifier = Notifier(store, sender, hooks, metrics, settings.webhook_pauses_seconds)
            await stack.enter_async_context(running("tell of jobs", notifier.run()))
        yield JobParts(
            store=store,
            intake=Intake(parts.limits, settings.job_max_lines, settings.largest_request()),
            checked_webhook=hooks.checked,
            look=worker.look,
            client_left=parts.client_left,
            failed_in_stream=parts.failed_in_stream,
        )
