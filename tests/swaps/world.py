"""A gateway, a policy agent and a reward service as they are, on one registry and real sockets, in one process.

Doubles are only the engines: vLLM's says in every text which version wrote it, the reward model's score is the number
of its version. So every candidate and every score shows where it comes from.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.test_solver_over_http import a_job
from prometheus_client import CollectorRegistry
from registry.tiny import write_checkpoint
from reward.models import ArithmeticModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.slots_http import HttpSlots
from acemath_gateway.adapters.status_file import StatusFileLeases
from acemath_gateway.jobs import Outcome
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.pointer import ChannelWatch
from acemath_gateway.prompts import RegistryEncoders
from acemath_gateway.releases import ReleaseTracker
from acemath_gateway.solver import Solver
from acemath_policy.app import create_app as policy_app
from acemath_policy.reconcile import Reconciler
from acemath_policy.server import PolicyServer
from acemath_policy.settings import PolicySettings
from acemath_policy.vllm_server import VllmClient
from acemath_registry import ModelRef, PublishMetadata, Registry
from acemath_registry.following import StatusLeases, SwapStrategy
from acemath_reward.app import create_app as reward_app
from acemath_reward.settings import RewardSettings
from doubles.fake_vllm_server import FakeServer, Tokens
from doubles.gateway_app import served
from doubles.ports import TextJudge
from doubles.servers import served as served_bare
from doubles.servers import until
from doubles.small_release import CONTEXT_LENGTH, _with_bytes_as_tokens

SETTLE = 0.3  # seconds
AVAILABILITY = SwapStrategy.AVAILABILITY_PRESERVING


class Engine(FakeServer):
    """vLLM's double that writes its version into every text, and counts what comes after it was told to stop."""

    started: bool = False
    stopping: bool = False
    ended: bool = False
    late: int = 0

    def faults(self) -> dict[str, Any]:
        return {"script": [f"{self.name}: \\boxed{{{i}}}" for i in range(3)], "token_seconds": 0.0005}

    async def completions(self, request: Request) -> Response:
        if self.stopping:
            self.late += 1
            return JSONResponse({"error": "cannot schedule new futures after shutdown"}, 500)  # as vLLM does
        return await super().completions(request)


class InProcess:
    """What `ProcessTree` is to a server, without a process: an engine on a socket."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.status, self.tail = engine, None, deque[str]()
        self._open = AsyncExitStack()
        self.url = ""

    async def open(self) -> None:
        self.url = await self._open.enter_async_context(served_bare(self.engine.app()))

    async def start(self) -> None:
        """It listens already."""
        self.engine.started = True

    def remember(self, *, now: bool = False) -> None:
        """There is no process to remember."""

    async def stop(self) -> None:
        self.engine.stopping = True
        await until(lambda: not self.engine.running, seconds=30)
        await self._open.aclose()
        self.engine.ended = True

    kill = stop


@dataclass
class Engines:
    """The launcher: makes real `PolicyServer`s on engines of this process."""

    settings: PolicySettings
    metrics: Any
    ready: dict[ModelRef, InProcess] = field(default_factory=dict)
    made: list[Engine] = field(default_factory=list)
    most: int = 0

    async def prepare(self, ref: ModelRef) -> None:
        """Listen for a version before it is asked for: `make` cannot wait."""
        engine = Engine(str(ref), str(ref), CONTEXT_LENGTH, Tokens.of(Path("/nonexistent")))
        self.made.append(engine)
        self.ready[ref] = InProcess(engine)
        await self.ready[ref].open()

    def make(self, ref: ModelRef, model: Path, taken: Collection[int]) -> PolicyServer:
        self.most = max(self.most, 1 + sum(engine.started and not engine.ended for engine in self.made))
        tree = self.ready.pop(ref)
        client = VllmClient(tree.url, str(ref), None)
        port = int(tree.url.rpartition(":")[2])
        return PolicyServer(tree, client, port, tree.url, self.settings, self.metrics)  # type: ignore[arg-type]


@dataclass
class World:
    """Everything, running.

    Attributes:
        scores: reward version → the score that it gives to everything.
        models: what was loaded and is still alive.
        most: reward models that were alive when another was loaded, that one included; one number for each load.
        figures: the gateway's.
    """

    registry: Registry
    folder: Path
    tracker: ReleaseTracker
    solver: Solver
    agent: Reconciler
    engines: Engines
    scores: dict[str, float] = field(default_factory=dict)
    models: list[weakref.ref[ArithmeticModel]] = field(default_factory=list)
    most: list[int] = field(default_factory=list)
    figures: CollectorRegistry = field(default_factory=CollectorRegistry)

    async def publish(self, kind: str) -> ModelRef:
        """A new version; every one has another number."""
        number = len(list(self.folder.glob("export-*")))
        source = write_checkpoint(self.folder / f"export-{number}", kind, mark=str(number))
        _with_bytes_as_tokens(source)
        metadata = PublishMetadata(step=number, licence="Apache-2.0")
        ref = await asyncio.to_thread(
            self.registry.publish, source, name=f"small-{kind}", kind=kind, metadata=metadata, by="test"
        )
        if kind == "policy":
            await self.engines.prepare(ref)
        else:
            self.scores[str(ref)] = float(number)
        return ref

    def promote(self, policy: ModelRef, reward: ModelRef) -> int:
        release = self.registry.create_release(policy, reward)
        return self.registry.promote("default", release.id, expected_generation=None, by="test").generation

    async def until(self, generation: int, seconds: float = 120) -> None:
        """Until new jobs use this generation."""

        def flipped() -> bool:
            target = self.tracker.current()
            return target is not None and target.generation >= generation

        await until(flipped, seconds)

    async def solve(self, n: int = 8, *, seconds: float = 60.0, **job: Any) -> Outcome:
        async with aclosing(self.solver.run(a_job(n=n, max_tokens=64, seconds=seconds, **job))) as run:
            events = [event async for event in run]
        assert isinstance(events[-1], Outcome)
        return events[-1]

    def alive(self) -> int:
        """Reward models in memory."""
        gc.collect()
        return sum(model() is not None for model in self.models)


@asynccontextmanager
async def open_world(
    folder: Path, root: Path | str | None = None, strategy: SwapStrategy = AVAILABILITY
) -> AsyncIterator[World]:
    registry = Registry(root or folder / "registry")
    if root is None:
        registry.root.mkdir()
    figures = CollectorRegistry()
    metrics = GatewayMetrics.on(figures)
    scores: dict[str, float] = {}
    models: list[weakref.ref[ArithmeticModel]] = []
    most: list[int] = []

    def load(directory: Path) -> ArithmeticModel:
        model = ArithmeticModel(max_tokens=CONTEXT_LENGTH)
        value = scores[f"{directory.parent.name}@{directory.name}"]
        model.answer = lambda prompt, own: value
        most.append(1 + sum(other() is not None for other in models))
        models.append(weakref.ref(model))
        return model

    policy_settings = PolicySettings(
        registry_root=root or registry.root, cache_dir=folder / "policy", poll_seconds=0.05, probe_seconds=0.05,
        drain_quiet_seconds=0.1, restart_backoff_max_seconds=0.1, spare_copies=0, swap_strategy=strategy,
    )  # fmt: skip
    reward_settings = RewardSettings(
        registry_root=root or registry.root, cache_dir=folder / "reward", poll_seconds=0.05, drain_quiet_seconds=0.1,
        spare_copies=0, max_queue_items=100_000, swap_strategy=strategy,
    )  # fmt: skip
    made: list[tuple[Reconciler, Engines]] = []

    def make_agent(policy_metrics: Any) -> Reconciler:
        engines = Engines(policy_settings, policy_metrics)
        leases = StatusLeases(registry, "default", max_age_seconds=30)
        made.append((Reconciler(policy_settings, registry, engines, leases, policy_metrics, SETTLE), engines))  # type: ignore[arg-type]
        return made[0][0]

    async with (
        served(policy_app(make_agent, None)) as policy_url,
        served(reward_app(reward_settings, load)) as reward_url,
        AsyncExitStack() as stack,
    ):
        policy, reward = (Upstream(role, key=None, metrics=metrics) for role in ("policy", "reward"))
        stack.push_async_callback(policy.close)
        stack.push_async_callback(reward.close)
        encoders = RegistryEncoders(registry)
        tracker = ReleaseTracker(
            channel=ChannelWatch(registry, "default"), slots=HttpSlots(policy), policy_urls=[policy_url],
            reward_urls=[reward_url], encoders=encoders, metrics=metrics, poll_seconds=0.05, heartbeat_seconds=0.2,
            stores=[StatusFileLeases(registry, instance="g1", channel="default")],
        )  # fmt: skip
        solver = Solver(
            policy=VllmPolicy(policy), scorer=HttpScorer(reward), judge=TextJudge(), releases=tracker,
            encoders=encoders, metrics=metrics,
        )  # fmt: skip
        agent, engines = made[0]
        following = asyncio.create_task(tracker.run())
        try:
            yield World(registry, folder, tracker, solver, agent, engines, scores, models, most, figures)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
