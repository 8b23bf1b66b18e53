from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loopback_ports import free_run
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from registry.keys import make_keys
from registry.tiny import write_checkpoint

import doubles.fake_vllm
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.reconcile import Reconciler
from acemath_policy.server import Launcher
from acemath_policy.settings import PolicySettings, inherited_environment
from acemath_registry import ModelRef, PublishMetadata, Registry, SigningKey, TrustedKeys
from acemath_registry.following import Leases, StatusLeases, SwapStrategy

FAKE_VLLM = Path(doubles.fake_vllm.__file__)
KEY = SecretStr("the internal key")
SETTLE = 0.3  # seconds


@pytest.fixture
def port_range() -> tuple[int, int]:
    """Some free ports in a row; the one before them is the agent's."""
    agent = free_run(7)
    return agent + 1, agent + 6


@pytest.fixture
def strategy() -> SwapStrategy:
    """Of swaps; tests that hold for both are parametrised by it."""
    return SwapStrategy.AVAILABILITY_PRESERVING


@pytest.fixture
def settings(tmp_path: Path, port_range: tuple[int, int], strategy: SwapStrategy) -> PolicySettings:
    """An agent that runs doubles and does everything soon."""
    first, last = port_range
    return PolicySettings(
        instance="0",
        registry_root=tmp_path / "registry",
        cache_dir=tmp_path / "cache",
        port=first - 1,
        first_vllm_port=first,
        last_vllm_port=last,
        vllm_command=(sys.executable, str(FAKE_VLLM)),
        max_model_len=2048,
        shutdown_timeout_seconds=2,
        start_timeout_seconds=60,
        poll_seconds=0.05,
        probe_seconds=0.05,
        probe_timeout_seconds=5,
        idle_probe_seconds=0.2,
        warm_timeout_seconds=10,
        drain_quiet_seconds=0.1,
        restart_backoff_max_seconds=0.1,
        swap_strategy=strategy,
    )


@dataclass
class Releases:
    """Publishes versions and promotes releases."""

    registry: Registry
    folder: Path
    made: int = 0
    reward: ModelRef | None = None

    def publish(self, mark: str, canary: dict[str, Any] | None = None) -> ModelRef:
        self.made += 1
        source = write_checkpoint(self.folder / f"export-{self.made}", mark=mark)
        metadata = PublishMetadata(step=self.made, licence="Apache-2.0", canary=canary)
        return self.registry.publish(source, name="pol", kind="policy", metadata=metadata)

    def promote(self, policy: ModelRef) -> str:
        """Returns the release's id."""
        if self.reward is None:
            source = write_checkpoint(self.folder / "export-reward", "reward")
            metadata = PublishMetadata(step=0, licence="Apache-2.0")
            self.reward = self.registry.publish(source, name="rew", kind="reward", metadata=metadata)
        release = self.registry.create_release(policy, self.reward)
        self.registry.promote("default", release.id, expected_generation=None, by="test")
        return release.id

    def gateway(
        self,
        generation: int,
        leases: dict[str, int] | None = None,
        name: str = "gw",
        age: float = 0,
        release: str | None = None,
    ) -> None:
        """What a gateway would write."""
        at = time.time() - age
        record = {"generation": generation, "release": release, "leases": leases or {}, "at": at, "viewed": at}
        self.registry.write_status("gateway", name, record)

    @asynccontextmanager
    async def gateway_that(self, **says: Any) -> AsyncIterator[dict[str, Any]]:
        """A gateway that looks and writes all the time; what it says can be changed."""

        async def write() -> None:
            while True:
                self.gateway(**says)
                await asyncio.sleep(0.05)

        writing = asyncio.create_task(write())
        try:
            yield says
        finally:
            writing.cancel()
            await asyncio.wait({writing})


@pytest.fixture
def keys(tmp_path: Path) -> tuple[SigningKey, SigningKey]:
    """Ours and theirs."""
    return make_keys(tmp_path)


@pytest.fixture
def releases(settings: PolicySettings, tmp_path: Path) -> Releases:
    return Releases(Registry(settings.registry_root), tmp_path)


@dataclass
class Agent:
    """A reconciler in its loop, without HTTP."""

    reconciler: Reconciler
    metrics: CollectorRegistry
    rounds: asyncio.Task[None]

    def states(self) -> dict[str, str]:
        """mark of a version (its step) → state."""
        return {slot.version.partition("@s")[2].partition("-")[0]: slot.state.value for slot in self.reconciler.slots()}

    def reason(self, step: int) -> str:
        return next(s.reason or "" for s in self.reconciler.slots() if f"@s{step}-" in s.version)

    def endpoint(self, step: int) -> str:
        return next(s.endpoint or "" for s in self.reconciler.slots() if f"@s{step}-" in s.version)


@dataclass
class Agents:
    settings: PolicySettings
    environment: dict[str, str] = field(default_factory=inherited_environment)
    running: list[Agent] = field(default_factory=list)

    def start(self, leases: Leases | None = None, trusted: TrustedKeys | None = None, **changes: Any) -> Agent:
        """Start an agent; `changes` replace settings."""
        settings = self.settings.model_copy(update=changes)
        prometheus = CollectorRegistry()
        metrics, registry = PolicyMetrics(prometheus), Registry(settings.registry_root, trusted=trusted)
        launcher = Launcher(settings, self.environment, KEY, metrics)
        reconciler = Reconciler(
            settings, registry, launcher, leases or StatusLeases(registry, "default", 30.0), metrics, SETTLE
        )
        agent = Agent(reconciler, prometheus, asyncio.create_task(reconciler.run()))
        self.running.append(agent)
        return agent


@pytest.fixture
async def agents(settings: PolicySettings) -> AsyncIterator[Agents]:
    made = Agents(settings)
    yield made
    for agent in made.running:
        agent.rounds.cancel()
        await asyncio.gather(agent.rounds, return_exceptions=True)
        await agent.reconciler.close()


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Wait until a condition holds, or fail with what is the case."""

    async def wait(condition: Callable[[], bool], seconds: float = 60, what: Callable[[], object] = lambda: "") -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"not within {seconds} s: {what()}"
            await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def control(tmp_path: Path, agents: Agents) -> Callable[[dict[str, Any]], object]:
    """Tells the doubles what to do from now on."""
    path = tmp_path / "control.json"
    agents.environment["FAKE_VLLM_CONTROL"] = str(path)

    def write(faults: dict[str, Any]) -> None:
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(faults))
        partial.replace(path)

    return write
