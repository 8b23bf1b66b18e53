"""The matrix of kills on whole services: what it asks of the real stack holds here, where parts die, too."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from loopback_ports import free_run

from acemath_registry import Registry
from bench.kills.__main__ import Stack
from bench.swapkills.asking import Clients
from bench.swapkills.matrix import Cell, Stage, Victim
from bench.swapkills.results import End, broken
from bench.swapkills.runner import Bench
from bench.swapkills.stack import Processes
from bench.swapkills.view import CHANNEL, Looker, Pair
from bench.swaps.load import Release
from bench.swaps.publishing import publish
from doubles.letters import Letters
from doubles.supervised import PORTS, supervised

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOKENS = 8


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Three services and Redis, with a first release."""
    (scratch := tmp_path / "scratch").mkdir()
    registry, letters = Registry(tmp_path / "registry"), Letters(TOKENS)
    made = letters.prepare(scratch / "first")
    refs = publish(registry, "policy", made.policy, 0), publish(registry, "reward", made.reward, 0)
    first = registry.create_release(*refs)
    registry.promote(CHANNEL, first.id, expected_generation=0, by="test")
    pair = Pair(str(refs[0]), str(refs[1]), first.id)
    with supervised(tmp_path, free_run(PORTS)) as stack:
        async with httpx.AsyncClient(base_url=stack.url) as gateway, httpx.AsyncClient() as services:
            known = {first.id: Release(first.id, str(refs[0]), str(refs[1]), made.letter, made.scores)}
            yield Bench(
                registry, Looker(registry, gateway, services, stack.policy_url, stack.reward_url),
                Processes(psutil.Process(os.getpid()), Stack(os.getpid(), gateway)),
                Clients(gateway, known, 2, TOKENS), letters.prepare, pair, 120.0, scratch, 2,
            )  # fmt: skip


async def test_parts_killed_in_the_middle_of_a_swap(bench: Bench) -> None:
    first = bench.current
    for cell in (Cell(Victim.NEW_VLLM, Stage.POLICY_LOADING), Cell(Victim.PUBLISHER, Stage.HALF_PUBLISHED)):
        row = await bench.cell(cell)
        assert row["hit"] == "hit" and not broken(row), (cell, row)
        assert row["requests"]["answered"] > 0
    assert row["end"] == End.OLD_KEPT and row["after_publisher"]["next"] == End.NEW
    assert bench.current != first
