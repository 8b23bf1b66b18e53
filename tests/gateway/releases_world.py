"""Two policy agents, two reward services, a channel, and a tracker that follows them."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, cast

from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_gateway.canary import CanaryState
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.pointer import ChannelWatch, Pointer
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.prompts import RegistryEncoders
from acemath_gateway.releases import ReleaseTracker
from doubles.ports import MemoryLeases, ScriptedSlots

A = Pointer("r-aaaaaaaaaaaa", 1, "p@s1-aaaaaaaaaaaa", "r@s1-aaaaaaaaaaaa", "0" * 64)


B = Pointer("r-bbbbbbbbbbbb", 2, "p@s2-bbbbbbbbbbbb", "r@s2-bbbbbbbbbbbb", "1" * 64)


C = Pointer("r-cccccccccccc", 3, "p@s3-cccccccccccc", "r@s3-cccccccccccc", "2" * 64)


P1, P2, R1, R2 = "http://p1", "http://p2", "http://r1", "http://r2"


ACTIVE, READY, STAGING, DRAINING, REJECTED = (
    SlotState.ACTIVE,
    SlotState.READY,
    SlotState.STAGING,
    SlotState.DRAINING,
    SlotState.REJECTED,
)


@dataclass
class Channel:
    pointers: tuple[Pointer, ...] = (A,)
    error: ServiceError | None = None
    reads: int = 0
    others: tuple[Pointer, ...] = ()

    def read(self) -> tuple[Pointer, ...]:
        self.reads += 1
        if self.error:
            raise self.error
        return self.pointers

    def peers(self) -> tuple[Pointer, ...]:
        return self.others


@dataclass
class Encoders:
    error: Exception | None = None
    silent: set[str] = field(default_factory=set)
    loaded: list[tuple[str, str | None]] = field(default_factory=list)

    async def load(self, version: str, *, manifest_sha256: str | None) -> None:
        self.loaded.append((version, manifest_sha256))
        if version in self.silent:
            await asyncio.Event().wait()
        if self.error:
            raise self.error


class World:
    """Two policy agents and two reward services that serve release A, and a tracker that follows them."""

    def __init__(self, **options: Any) -> None:
        self.channel, self.encoders, self.leases = Channel(), Encoders(), MemoryLeases()
        self.slots = ScriptedSlots(
            states={P1: {A.policy: ACTIVE}, P2: {A.policy: ACTIVE}, R1: {A.reward: ACTIVE}, R2: {A.reward: ACTIVE}},
            endpoints={P1: "http://v1/", P2: "http://v2"},
            lengths={"http://v1": 2048, "http://v2": 1024},
        )
        self.registry = CollectorRegistry()
        self.tracker = ReleaseTracker(
            channel=cast(ChannelWatch, self.channel),
            slots=self.slots,
            policy_urls=[P1, P2],
            reward_urls=[R1, R2],
            encoders=cast(RegistryEncoders, self.encoders),
            stores=[self.leases],
            metrics=GatewayMetrics.on(self.registry),
            **({"start_grace_seconds": 3600.0} | options),
        )

    async def poll(self) -> None:
        """Poll until what the canary needs was read, or could not be."""
        await self.tracker.poll()
        while (view := self.tracker.canary()) is not None and view.state is CanaryState.READING:
            await asyncio.sleep(0)
            await self.tracker.poll()

    def everywhere(self, pointer: Pointer, state: SlotState) -> None:
        for url in (P1, P2):
            self.slots.states[url][pointer.policy] = state
        for url in (R1, R2):
            self.slots.states[url][pointer.reward] = state

    def lease(self, key: str, seconds: float = 10.0) -> AbstractAsyncContextManager[ReleaseTarget]:
        return self.tracker.lease(key, Deadline.after(seconds))

    def release(self) -> str | None:
        current = self.tracker.current()
        return current.release if current else None

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels)
