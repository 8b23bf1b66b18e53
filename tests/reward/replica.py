"""A reward service with real engines that serves one version, and what training exported for it."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from registry.damage import Damage
from reward.publishing import publish_reward
from reward.tiny import make_model, write_checkpoint, write_tokenizer
from reward.world import S, World

from acemath_core.deadline import Deadline
from acemath_core.prompts import reward_messages
from acemath_core.wire import ScoreRequest
from acemath_prompts import PromptEncoder
from acemath_registry import ModelRef

PROBLEMS = ["Tom has 3 apples and buys 4 more. How many?", "1 + 1?"]
SOLUTIONS = ["The answer is \\boxed{7}.", "3 + 4 = 7", "\\boxed{8}", "no", "three", "2" * 40]


@dataclass(frozen=True)
class Exports:
    """What training left: two good checkpoints, and one to be spoilt in two forms, with its canary."""

    first: Path
    second: Path
    plain: Path
    sharded: Path
    canary: dict[str, Any]


def canary_of(model: torch.nn.Module, encoder: PromptEncoder) -> dict[str, Any]:
    """As a trainer computes it: plain transformers, the conversations beside their ids; exact, so in float32."""
    cases = []
    for problem, solution in itertools.product(PROBLEMS, SOLUTIONS):
        turns = reward_messages(problem, solution)
        ids = encoder.encode_conversation(turns)
        with torch.inference_mode():
            score = float(model.float()(input_ids=torch.tensor([ids])).logits[0, 0])
        cases.append({"messages": turns, "token_ids": ids, "score": score})
    return {"cases": cases, "dtype": "bfloat16"}


def make_exports(folder: Path) -> Exports:
    first, second, plain = (write_checkpoint(folder / f"{seed}", "llama", seed) for seed in (1, 2, 3))
    sharded = folder / "sharded"
    make_model("llama", 3).to(torch.bfloat16).save_pretrained(sharded, max_shard_size="250KB")
    write_tokenizer(sharded)
    canary = canary_of(make_model("llama", 3).to(torch.bfloat16), PromptEncoder.from_directory(plain))
    return Exports(first, second, plain, sharded, canary)


@dataclass
class Replica:
    """A reward service that serves `first`."""

    world: World
    exports: Exports
    first: ModelRef
    bits: list[float] = field(default_factory=list)

    async def scores(self) -> list[float]:
        """Of fixed candidates, by the version that serves."""
        request = ScoreRequest(problem="1 + 1?", candidates=["2", "three", "\\boxed{2}"])
        async with self.world.service.scoring(request, Deadline.after(30)) as scoring:
            found = {item.index: item.score async for items in scoring.items() for item in items}
        return [found[index] for index in range(3)]

    async def until(self, ref: ModelRef, state: S) -> None:
        deadline = time.monotonic() + 30
        while self.world.states().get(str(ref)) is not state:
            assert time.monotonic() < deadline, self.world.reconciler.slots()
            await self.world.reconciler.round()
            await asyncio.sleep(0.005)

    async def refuses(self, bad: ModelRef, reason: str, damage: Damage = lambda directory: None) -> None:
        """Promoted and then damaged, it is rejected with this reason, and the next good one goes in."""
        await self.rejects(bad, reason, damage)
        await self.takes_the_next()

    async def rejects(self, bad: ModelRef, reason: str, damage: Damage = lambda directory: None) -> None:
        """The old one never changes a bit meanwhile."""
        self.world.promote(bad)
        damage(self.world.registry.path(bad))
        await self.until(bad, S.REJECTED)
        (said,) = [slot.reason for slot in self.world.reconciler.slots() if slot.version == str(bad)]
        assert reason in str(said), said
        assert self.world.states()[str(self.first)] is S.ACTIVE and self.world.reconciler.readiness().ready
        assert await self.scores() == self.bits

    async def takes_the_next(self) -> None:
        second = publish_reward(self.world.registry, self.exports.second, step=9)
        self.world.promote(second)
        await self.until(second, S.ACTIVE)
        assert await self.scores() != self.bits
