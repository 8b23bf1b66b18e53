"""Versions that servers below the service compute: brought up, started again, dropped, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from policy.test_shim import alive
from reward.pooled_world import KEY, PooledWorld
from reward.world import S

from acemath_core.errors import ErrorCode, InternalError, Unavailable
from acemath_core.processors import cpu_dtype
from doubles.fake_vllm_server import pooled_score

Make = Callable[..., PooledWorld]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[PooledWorld] = []

    def one(environment: dict[str, str] | None = None, **changes: Any) -> PooledWorld:
        made.append(PooledWorld(tmp_path, environment, **changes))
        return made[-1]

    yield one
    for world in made:
        trees = world.trees()
        await asyncio.to_thread(world.batcher.close)
        await world.reconciler.close()
        world.service.close()
        assert not any(alive(pid) for tree in trees for pid in tree), "something outlives the service"


async def until(world: PooledWorld, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await world.reconciler.round()


def figure(world: PooledWorld, name: str, **labels: str) -> float:
    return world.figures.get_sample_value(f"acemath_reward_{name}", labels) or 0.0


async def test_a_version_is_served_by_its_own_server_and_says_so(make: Make) -> None:
    world = make(tensor_parallel_size=2)
    first = world.publish(1, canary=canary(0.0))
    world.promote(first)
    await world.until(v1=S.ACTIVE)
    assert await world.score() == str(first)
    details: Any = world.reconciler.readiness().details["versions"]
    found = details[str(first)]
    assert (found["engine"], found["tensor_parallel_size"], found["dtype"]) == ("vllm", 2, cpu_dtype())
    assert found["batch_invariance"] == "not promised by this engine" and found["batch_invariant"] is None
    assert found["canary_difference"] == 0.0
    assert figure(world, "batch_invariant") == 0.0 and figure(world, "prompt_tokens_saved_total") == 0.0


def canary(shift: float) -> dict[str, Any]:
    cases = [{"token_ids": ids, "score": pooled_score(ids) + shift} for ids in ([5, 9, 11], [7, 300])]
    return {"cases": cases, "dtype": "bfloat16"}


async def test_the_canary_decides_here_too_and_the_old_version_goes_on(make: Make) -> None:
    world = make()
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.promote(world.publish(2, canary=canary(1.5)))
    await world.until(v1=S.ACTIVE, v2=S.REJECTED)
    assert await world.score() == str(world.publish(1))
    assert len(world.trees()) == 1, "the rejected version's server is gone"
    assert "canary" in (world.reconciler.slots()[-1].reason or "")


async def test_a_swap_starts_the_new_server_beside_the_old_one_and_ends_that(make: Make) -> None:
    world = make()
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    (old,) = world.trees()
    world.gateway(generation=1)
    world.promote(world.publish(2))
    await world.until(v1=S.DRAINING, v2=S.ACTIVE)
    assert await world.score(str(world.publish(1))) == str(world.publish(1))
    world.gateway(generation=2)
    await world.until(v1=S.RETIRED, v2=S.ACTIVE)
    await until(world, lambda: len(world.trees()) == 1)
    assert not any(map(alive, old))


@pytest.mark.parametrize("part", ["api", "engine"])
async def test_a_server_that_dies_is_started_again(make: Make, part: str) -> None:
    world = make()
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    (tree,) = world.trees()
    _, _, api, engine, *_ = tree  # below the two keepers; a worker may still come
    os.kill({"api": api, "engine": engine}[part], signal.SIGKILL)
    with pytest.raises(Unavailable) as refused:
        while True:
            await world.score()
    assert refused.value.code in (ErrorCode.REWARD_UNAVAILABLE, ErrorCode.NOT_READY)
    assert refused.value.retry_after
    await until(world, lambda: not world.reconciler.readiness().ready)
    await world.until(v1=S.STAGING)
    await world.until(v1=S.ACTIVE)
    assert await world.score() == str(world.publish(1))
    assert figure(world, "server_failures_total", reason="exited") == 1.0
    assert not any(map(alive, tree))


async def test_one_that_says_its_engine_is_dead_is_started_again(make: Make) -> None:
    world = make()
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.tell(engine_dead=True)
    await world.until(v1=S.STAGING)
    assert (world.reconciler.slots()[0].reason or "").startswith("engine_dead: ")
    world.tell()
    await world.until(v1=S.ACTIVE)


async def test_one_that_hangs_fails_its_callers_in_time_and_is_started_again(make: Make) -> None:
    world = make(stuck_seconds=2.0)
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.tell(hang=True)
    with pytest.raises(Unavailable) as refused:
        await world.score()
    assert refused.value.code is ErrorCode.REWARD_UNAVAILABLE
    world.tell()
    await world.until(v1=S.STAGING)
    await world.until(v1=S.ACTIVE)
    assert await world.score() == str(world.publish(1))
    assert figure(world, "server_failures_total", reason="stalled") == 1.0


async def test_what_does_not_start_is_rejected_with_the_reason_and_its_last_words(make: Make) -> None:
    world = make(load_attempts=2)
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.make._inherited["FAKE_VLLM_FAIL_START"] = "1"
    world.promote(world.publish(2))
    await world.until(v1=S.ACTIVE, v2=S.REJECTED)
    reason = world.reconciler.slots()[-1].reason or ""
    assert reason.startswith("exited: vLLM ended with status 1: ValueError: the double was told to fail")
    assert figure(world, "server_failures_total", reason="exited") == 2.0


async def test_a_start_has_its_time_and_a_promotion_meanwhile_ends_it(make: Make) -> None:
    world = make({"FAKE_VLLM_START_SECONDS": "60"}, start_timeout_seconds=0.4)
    world.promote(world.publish(1))
    await until(world, lambda: figure(world, "server_failures_total", reason="start_timeout") >= 2.0)
    world.make._inherited["FAKE_VLLM_START_SECONDS"] = "0"
    world.make._settings = world.make._settings.model_copy(update={"start_timeout_seconds": 60.0})
    world.promote(world.publish(2))
    await world.until(v2=S.STAGING)
    assert world.states()[str(world.publish(1))] is S.RETIRED


async def test_a_server_that_answers_as_another_version_is_none(make: Make) -> None:
    world = make()
    world.tell(model="other@s1-000000000000")
    world.promote(world.publish(1))
    await until(world, lambda: figure(world, "server_failures_total", reason="wrong_answer") >= 1.0)
    assert "answers as 'other@s1-000000000000'" in (world.reconciler.slots()[0].reason or "")


async def test_heads_that_the_devices_cannot_share_are_refused(make: Make) -> None:
    world = make(tensor_parallel_size=3)
    world.promote(world.publish(1))
    await world.until(v1=S.REJECTED)
    assert "2 query heads cannot be shared" in (world.reconciler.slots()[0].reason or "")


async def test_a_request_that_vllm_cannot_score_fails_alone(make: Make) -> None:
    world = make()
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.tell(status=500, poison=2)  # the end of every candidate's turn
    with pytest.raises(InternalError):
        await world.score()
    world.tell()
    assert await world.score() == str(world.publish(1))
    assert KEY.get_secret_value() not in str(world.reconciler.readiness())
