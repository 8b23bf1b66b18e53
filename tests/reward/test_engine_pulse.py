"""An engine that hangs, or fails at everything, is told from calls that are at fault; it ends its process."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest
from reward.models import POISON, ArithmeticModel
from reward.world import S, World

from acemath_core.deadline import Deadline
from acemath_reward.batching import Encoded
from acemath_reward.ending import EXIT_STATUS
from acemath_reward.pulse import PulseLimits


@pytest.fixture
async def active(world: World) -> World:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    return world


@pytest.fixture
def model(active: World) -> ArithmeticModel:
    served = active.reconciler.choose(None).served
    assert served is not None and isinstance(served.engine.model, ArithmeticModel)
    return served.engine.model


@contextlib.asynccontextmanager
async def hanging(world: World) -> AsyncIterator[None]:
    goes_on = threading.Event()
    call = asyncio.create_task(world.batcher.call(lambda: goes_on.wait(60)))
    try:
        yield
    finally:
        goes_on.set()
        await call


async def fail_a_pass(world: World, ids: tuple[int, ...] = (1, 2)) -> None:
    served = world.reconciler.choose(None).served
    assert served is not None
    ticket = world.batcher.submit(served.engine, [Encoded((), ids)], Deadline.after(30))
    with pytest.raises(Exception, match="the engine failed on this call"):
        async for _ in ticket.parts():
            raise AssertionError("there is no score")


def soon_lost(world: World) -> None:
    world.reconciler._pulse._limits = PulseLimits(stuck_seconds=0.5, lost_seconds=1.0)


def ready(world: World) -> float | None:
    return world.figures.get_sample_value("acemath_reward_ready")


async def test_a_stuck_engine_says_so_until_it_goes_on(active: World) -> None:
    assert ready(active) == 1 and not active.reconciler.slots()[0].stuck
    async with hanging(active):
        await active.rounds(lambda: not active.reconciler.readiness().ready)
        await active.reconciler.round()
        assert "the engine has been at one batch for" in active.reconciler.readiness().reason
        (slot,) = active.reconciler.slots()
        assert slot.state is S.ACTIVE and slot.stuck and "at one batch" in str(slot.reason)
        assert ready(active) == 0 and not active.lost, "it may go on yet"
    await active.rounds(lambda: ready(active) == 1)
    (slot,) = active.reconciler.slots()
    assert slot.reason is None and not slot.stuck


async def test_one_that_never_goes_on_is_given_up(active: World) -> None:
    soon_lost(active)
    async with hanging(active):
        await active.rounds(lambda: active.lost)
        assert "at one batch" in active.lost[0]


async def test_an_engine_that_fails_at_everything_is_given_up(active: World, model: ArithmeticModel) -> None:
    model.poison = 0  # the token that it is asked for, too
    await fail_a_pass(active, (0, 1))
    await active.rounds(lambda: not active.reconciler.readiness().ready)
    assert "a batch of one token fails, too (RuntimeError)" in active.reconciler.readiness().reason
    assert active.reconciler.slots()[0].stuck and not active.lost
    soon_lost(active)
    await active.rounds(lambda: active.lost)


async def test_one_that_computes_again_is_ready_again(active: World, model: ArithmeticModel) -> None:
    model.poison = 0
    await fail_a_pass(active, (0, 1))
    await active.rounds(lambda: not active.reconciler.readiness().ready)
    model.poison = POISON
    await active.rounds(lambda: active.reconciler.readiness().ready)
    assert not active.lost


async def test_a_call_at_fault_is_not_the_engines_fault(active: World, model: ArithmeticModel) -> None:
    for _ in range(3):
        await fail_a_pass(active, (POISON, 1))
        asked = len(model.passes)
        await active.rounds(lambda asked=asked: len(model.passes) > asked)  # type: ignore[misc]
        await active.rounds(lambda: not active.batcher.failing)
        assert active.reconciler.readiness().ready
    assert not active.lost


async def test_an_engine_without_failures_is_not_asked_to_compute(active: World, model: ArithmeticModel) -> None:
    before = len(model.passes)
    for _ in range(10):
        await active.reconciler.round()
        await asyncio.sleep(0.01)
    assert len(model.passes) == before


def test_the_process_ends_at_once_with_its_reason_and_a_status() -> None:
    code = (
        "import logging, threading, time; logging.basicConfig();"
        "from acemath_reward.ending import end_process;"
        "threading.Thread(target=time.sleep, args=(600,)).start();"  # an engine's thread that never comes back
        "end_process('the engine hangs')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EXIT_STATUS
    assert "the engine hangs" in ended.stderr
