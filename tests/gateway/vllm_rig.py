"""The adapter of vLLM at the double of its server, and what comes out of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from acemath_core.deadline import Deadline
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import (
    CandidateFailed,
    CandidateFinished,
    PolicyEvent,
    ReleaseTarget,
    Sampling,
)
from doubles.fake_vllm_server import FakeServer, Tokens
from doubles.ports import TARGET
from doubles.servers import no_task_left

PROMPT = [1, 2, 3]


class Rig:
    """The adapter and what it counts."""

    def __init__(self, key: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self.upstream = Upstream(
            "policy", key=SecretStr(key) if key else None, metrics=GatewayMetrics.on(self.registry)
        )
        self.policy = VllmPolicy(self.upstream, stream_interval=4)

    async def ask(self, *endpoints: str, n: int = 3, seconds: float = 5.0, **changes: Any) -> list[PolicyEvent]:
        sampling = Sampling(**({"n": n, "temperature": 0.7, "top_p": 0.95, "max_tokens": 256, "seed": 0} | changes))
        events = self.policy.generate(target(*endpoints), PROMPT, sampling, Deadline.after(seconds))
        async with aclosing(events):
            return [event async for event in events]

    def calls(self, result: str) -> float:
        return self.metric("upstream_calls_total", role="policy", result=result)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0


def target(*endpoints: str) -> ReleaseTarget:
    return ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, endpoints, ())


def fake(**changes: Any) -> FakeServer:
    defaults: dict[str, Any] = {
        "name": TARGET.policy,
        "fingerprint": TARGET.policy,
        "max_model_len": 2048,
        "tokens": Tokens.of(Path("/nonexistent")),
    }
    return FakeServer(**(defaults | changes))


def finished(events: list[PolicyEvent]) -> dict[int, CandidateFinished]:
    return {e.index: e for e in events if isinstance(e, CandidateFinished)}


def failed(events: list[PolicyEvent]) -> dict[int, str]:
    return {e.index: e.reason for e in events if isinstance(e, CandidateFailed)}


@asynccontextmanager
async def rigged() -> AsyncIterator[Rig]:
    """A rig, of which nothing is left afterwards."""
    rig = Rig()
    yield rig
    await rig.upstream.close()
    await no_task_left()
