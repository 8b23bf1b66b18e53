"""What the gateway's tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from doubles.servers import no_task_left
from doubles.valkey import ValkeyServer


@pytest.fixture(scope="module")
def valkey_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey(valkey_of_module: ValkeyServer) -> ValkeyServer:
    """The module's server of the Redis protocol: there, and empty."""
    if not valkey_of_module.running:
        valkey_of_module.start()
    valkey_of_module.flush()
    return valkey_of_module


@pytest.fixture
async def nothing_left_behind() -> AsyncIterator[None]:
    """No task that the test began outlives it."""
    before = asyncio.all_tasks()
    yield
    await no_task_left(before)
