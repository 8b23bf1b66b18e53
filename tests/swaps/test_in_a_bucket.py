"""Policy agent, reward service and gateway follow a registry in a bucket as they follow one on a disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from swaps.world import World, open_world

from acemath_registry.stores import s3
from doubles.s3_server import Faults, environment, serving
from doubles.servers import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Faults]]:
    with serving() as found:
        yield found


@pytest.fixture
async def world(server: tuple[str, Faults], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name, value in environment(server[0]).items():
        monkeypatch.setenv(name, value)
    await asyncio.to_thread(lambda: s3.connect("models").create_bucket(Bucket="models"))
    async with open_world(tmp_path, "s3://models/team") as made:
        yield made
        server[1].rule = None


async def swap(world: World) -> tuple[str, str]:
    policy, reward = await world.publish("policy"), await world.publish("reward")
    await world.until(await asyncio.to_thread(world.promote, policy, reward))
    return str(policy), str(reward)


async def ask(world: World, ending: asyncio.Event) -> list[tuple[str, str, set[str], set[float]]]:
    """Questions one after the other: the release of each answer, who wrote it, and what it scored."""
    found = []
    while not ending.is_set():
        outcome = await world.solve(4)
        written = {one.text.partition(":")[0] for one in outcome.candidates}
        scored = {one.score for one in outcome.candidates if one.score is not None}
        found.append((outcome.target.policy, outcome.target.reward, written, scored))
    return found


async def test_two_swaps_under_load_and_an_outage_of_the_bucket(world: World, server: tuple[str, Faults]) -> None:
    first = await swap(world)
    ending = asyncio.Event()
    clients = [asyncio.create_task(ask(world, ending)) for _ in range(4)]
    second = await swap(world)
    server[1].rule = lambda app, environ, start: (start("503 Slow Down", []), [b""])[1]
    asked = len(server[1].seen)
    await until(lambda: len(server[1].seen) > asked + 5, 60)  # everybody has asked, and was refused
    assert (await world.solve(4)).target.policy == second[0]
    server[1].rule = None
    third = await swap(world)
    await until(lambda: [str(slot.ref) for slot in world.agent._slots] == [third[0]], 60)
    ending.set()
    answers = [answer for client in clients for answer in await client]
    assert {answer[:2] for answer in answers} <= {first, second, third} and answers
    assert all(written == {policy} and scored == {world.scores[reward]} for policy, reward, written, scored in answers)
