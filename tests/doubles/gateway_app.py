"""The gateway's real application and solver on doubles of its ports, and a real socket to speak to it through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from acemath_gateway.adapters.redis_jobs import RedisJobStore
from acemath_gateway.adapters.redis_link import RedisLink
from acemath_gateway.adapters.webhook_http import HttpWebhooks
from acemath_gateway.app import Backends, create_app
from acemath_gateway.canary import CanaryView
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.places import Places
from acemath_gateway.readiness import ReadyState
from acemath_gateway.settings import GatewaySettings
from acemath_gateway.shared import open_shared
from acemath_gateway.solver import Solver
from acemath_web.health import Readiness
from doubles import servers
from doubles.keys import MemoryKeys
from doubles.ports import BytePrompts, FixedRelease, ScriptedPolicy, ScriptedScorer, TextJudge
from doubles.quotas import MemoryQuotas
from doubles.servers import client_of
from doubles.stores import MemoryAnswers, MemoryIdempotency, MemoryLimit

PROBLEM = "A farmer has 3 baskets with 8 apples in each basket. How many apples are there?"

SCRIPT = ("3 * 8 = 24. \\boxed{24}", "8 + 8 + 8 = 24, so \\boxed{24}.", "3 + 8 = 11. \\boxed{11}")


def right_score(text: str) -> float:
    """The right answer scores higher; distinct for texts of distinct length."""
    return (10.0 if "24" in text else 0.0) - len(text) / 8


@dataclass
class GatewayOnDoubles:
    """One gateway process' worth of application.

    Attributes:
        settings: fields of `GatewaySettings`.
        redis_url: use the real shared stores on this Redis; None uses the ones in memory.
        admin_key: the first admin key; None starts without one.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    redis_url: str | None = None
    policy: ScriptedPolicy = field(default_factory=lambda: ScriptedPolicy(SCRIPT))
    scorer: ScriptedScorer = field(default_factory=lambda: ScriptedScorer(right_score))
    release: FixedRelease = field(default_factory=FixedRelease)
    judge: TextJudge = field(default_factory=TextJudge)
    limit: MemoryLimit = field(default_factory=MemoryLimit)
    idempotency: MemoryIdempotency = field(default_factory=MemoryIdempotency)
    answers: MemoryAnswers = field(default_factory=MemoryAnswers)
    keys: MemoryKeys = field(default_factory=MemoryKeys)
    quotas: MemoryQuotas = field(default_factory=MemoryQuotas)
    webhooks: HttpWebhooks = field(default_factory=lambda: HttpWebhooks(inside=True))
    admin_key: str | None = None
    serving: bool = True
    canary: CanaryView | None = None
    state: ReadyState | None = None

    def app(self) -> FastAPI:
        url = {"redis_url": self.redis_url} if self.redis_url else {}
        values = {"registry_root": Path("/nonexistent"), "instance": "test", **url, **self.settings}
        admin_key = SecretStr(self.admin_key) if self.admin_key else None
        return create_app(GatewaySettings(**values), self._open, self._during, admin_key)

    def _during(self, state: ReadyState) -> nullcontext[None]:
        self.state = state
        return nullcontext()

    @asynccontextmanager
    async def _open(
        self, settings: GatewaySettings, metrics: GatewayMetrics, door: DoorMetrics
    ) -> AsyncIterator[Backends]:
        solver = Solver(
            policy=self.policy,
            scorer=self.scorer,
            judge=self.judge,
            releases=self.release,
            encoders=BytePrompts(max_length=200_000),
            metrics=metrics,
            rejection=settings.reject_rules(),
        )
        if self.redis_url is None:
            yield Backends(
                solver,
                self.limit,
                self.idempotency,
                self._serving,
                self._readiness,
                keys=self.keys,
                quotas=self.quotas,
                answers=self.answers,
                canary=lambda: self.canary,
                jobs=unreachable_jobs(settings),
                webhooks=self.webhooks,
            )
            return
        places = Places(settings.max_sequences_in_flight, door.max_sequences)
        async with open_shared(settings, door, places) as shared:
            yield Backends(
                solver,
                shared.limit,
                shared.idempotency,
                self._serving,
                self._readiness,
                keys=shared.keys,
                jobs=shared.jobs,
                webhooks=self.webhooks,
                quotas=shared.quotas,
                answers=shared.answers,
                canary=lambda: self.canary,
            )

    def _serving(self):
        return self.release.target if self.serving else None

    def _readiness(self) -> Readiness:
        return Readiness(self.serving, "" if self.serving else "no release")


def unreachable_jobs(settings: GatewaySettings) -> RedisJobStore:
    """The real store on a link that was never connected: jobs are an error, and nothing is asked of any network."""
    link = RedisLink("redis://127.0.0.1:1/0", timeout_seconds=1, on_change=lambda up: None)
    return RedisJobStore(link, settings.job_rules(), instance="test")


def served(app: FastAPI) -> AbstractAsyncContextManager[str]:
    """Serve on a free port of loopback, in this event loop; gives the base URL."""
    return servers.served(app, lifespan="on", timeout_graceful_shutdown=2)


@asynccontextmanager
async def gateway_client(gateway: GatewayOnDoubles, **client: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a served gateway."""
    async with served(gateway.app()) as url, client_of(url, **client) as session:
        yield session


async def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until `condition()` is true; the deadline is a busy machine's, and only a failure waits for it."""

    async def ask() -> object:
        return condition()

    await eventually_true(ask, seconds)


async def eventually_true(ask: Callable[[], Awaitable[object]], seconds: float = 20.0) -> None:
    """Wait until `await ask()` is true, at most `seconds`."""
    until = time.monotonic() + seconds
    while not await ask():
        assert time.monotonic() < until, f"not within {seconds} s"
        await asyncio.sleep(0.01)
