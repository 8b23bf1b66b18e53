"""What a version's canary, and a look at its bits, decide when it comes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reward.models import ArithmeticModel
from reward.publishing import publish_reward
from reward.world import S, World

from acemath_core.deadline import Deadline
from acemath_core.wire import ScoreRequest, SlotState
from acemath_registry import publish as registry_publish
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.ports import PromptGroup, RewardModel


def engine(directory: Path) -> RewardModel:
    return load_engine(directory, place("cpu", "bfloat16", threads=1))


CASES = [{"token_ids": [5, 6, 7, 8, 9, 10 + i]} for i in range(4)]


async def canary_of(world: World, shift: float) -> dict[str, Any]:
    """The scores that the engine gives, moved by `shift`."""
    world.publish(1)
    model = load_engine(world.directory / "export-1", place("cpu", "bfloat16", threads=1))
    found = [model.score([PromptGroup((), (tuple(case["token_ids"]),))])[0][0] for case in CASES]
    cases = [case | {"score": score + shift} for case, score in zip(CASES, found, strict=True)]
    return {"cases": cases, "dtype": "bfloat16"}


@pytest.mark.parametrize(("shift", "state"), [(0.0, S.ACTIVE), (2.0, S.REJECTED)])
async def test_the_canary_decides(world: World, shift: float, state: SlotState) -> None:
    canary = await canary_of(world, shift)
    world.make = engine
    reward = publish_reward(world.registry, world.directory / "export-1", canary=canary, step=9)
    world.promote(reward)
    await world.rounds(lambda: world.states().get(str(reward)) is state)
    reason = world.reconciler.readiness().reason
    assert ("canary" in reason) is (state is S.REJECTED)


async def test_a_malformed_canary_is_a_rejection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish(1)
    monkeypatch.setattr(registry_publish, "require_canary", lambda *given: None)  # an older publisher let it pass
    reward = publish_reward(world.registry, world.directory / "export-1", canary={"cases": []}, step=9)
    world.promote(reward)
    await world.rounds(lambda: world.states().get(str(reward)) is S.REJECTED)
    assert "canary is malformed" in world.reconciler.readiness().reason


async def test_where_bits_depend_on_the_batch_each_candidate_goes_alone(world: World) -> None:
    class Varying(ArithmeticModel):
        def score(self, groups: Any) -> list[list[float]]:
            many = sum(len(group.candidates) for group in groups)
            return [[value + many * 1e-3 for value in row] for row in super().score(groups)]

    model = Varying()
    world.make = lambda path: model
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    details: Any = world.reconciler.readiness().details["versions"]
    assert details[str(world.publish(1))]["batch_invariant"] is False
    model.batches.clear()
    request = ScoreRequest(problem="1 + 1?", candidates=["2", "3", "4"])
    async with world.service.scoring(request, Deadline.after(30)) as scoring:
        _ = [items async for items in scoring.items()]
    assert [sum(len(group.candidates) for group in batch) for batch in model.batches] == [1, 1, 1]
