"""The real stores of one gateway on a real server, for suites that run on them and on their doubles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.places import Places
from acemath_gateway.settings import GatewaySettings
from acemath_gateway.shared import SharedStores, open_shared
from doubles.valkey import ValkeyServer


@asynccontextmanager
async def shared_redis(directory: Path, **settings: Any) -> AsyncIterator[tuple[SharedStores, ValkeyServer]]:
    """The stores, opened as a gateway does, and the server that they are on."""
    with ValkeyServer(directory) as server:
        given = {"redis_timeout_seconds": 5.0} | settings  # of a busy machine
        configured = GatewaySettings(registry_root=directory, redis_url=server.url, **given)
        door = DoorMetrics.on(CollectorRegistry())
        places = Places(configured.max_sequences_in_flight, door.max_sequences)
        async with open_shared(configured, door, places) as shared:
            yield shared, server
