"""The live adapter, what it counts, and candidates that are handed to it word by word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from acemath_core.deadline import Deadline
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.reward_live import LiveScorer, LiveSession
from acemath_gateway.metrics import GatewayMetrics
from doubles.fake_reward import score_of
from doubles.ports import TARGET

CONTEXT: list[ChatMessage] = [{"role": "user", "content": "What is 3 * 8?"}]
TEXTS = ["3 times 8 is 24. \\boxed{24}", "8 + 8 + 8 = 24, so it is \\boxed{24}.", "3 + 8 = 11. \\boxed{11}"]
SCORES = [score_of(text) for text in TEXTS]


class Rig:
    """The adapter and what it counts."""

    def __init__(self, key: str | None = None, **options: Any) -> None:
        self.registry = CollectorRegistry()
        metrics = GatewayMetrics.on(self.registry)
        self.upstream = Upstream("reward", key=SecretStr(key) if key else None, metrics=metrics)
        patience = options.pop("patience_seconds", 30.0)
        self.scorer = LiveScorer(self.upstream, HttpScorer(self.upstream, patience_seconds=patience), **options)

    @asynccontextmanager
    async def session(self, *endpoints: str, seconds: float = 20.0) -> AsyncIterator[LiveSession]:
        async with self.scorer.session(
            replace(TARGET, reward_endpoints=endpoints), CONTEXT, Deadline.after(seconds)
        ) as session:
            yield session

    async def scores(self, *endpoints: str) -> list[float]:
        async with self.session(*endpoints) as session:
            return await written(session)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0

    def calls(self, result: str) -> float:
        return self.metric("upstream_calls_total", role="reward", result=result)

    def fallbacks(self, reason: str) -> float:
        return self.metric("live_fallbacks_total", reason=reason)

    def shunned(self) -> bool:
        """Whether it ever was: a breaker is open for two seconds only."""
        return self.metric("breaker_opens_total", role="reward") > 0


async def written(session: LiveSession, texts: list[str] = TEXTS) -> list[float]:
    """Hand candidates over word by word, in step, and take their scores."""
    words = [text.split(" ") for text in texts]
    for step in range(max(map(len, words))):
        for index, own in enumerate(words):
            if step < len(own):
                session.piece(index, own[step] + " " * (step + 1 < len(own)))
        await asyncio.sleep(0.002)
    return list(await asyncio.gather(*(session.score(index, text) for index, text in enumerate(texts))))
