"""A follower sees promotions, keeps what it knew through trouble, and never goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from registry.tiny import METADATA

from acemath_registry import ModelKind, ModelRef, Registry
from acemath_registry.following import ChannelFollower


class Follower:
    """A follower of the reward side with everything it told."""

    def __init__(self, registry: Registry) -> None:
        self.generations: list[int] = []
        self.errors = 0
        self.channel = ChannelFollower(
            registry, "default", ModelKind.REWARD, on_generation=self.generations.append, on_error=self._count
        )

    def _count(self) -> None:
        self.errors += 1


async def test_it_follows_promotions(
    registry: Registry, policy: ModelRef, reward: ModelRef, make_checkpoint: Callable[..., Path]
) -> None:
    follower = Follower(registry)
    assert await follower.channel.read() is None and follower.errors == 1 and follower.channel.problem is not None
    first = registry.create_release(policy, reward)
    registry.promote("default", first.id, expected_generation=None, by="test")
    seen = await follower.channel.read()
    assert seen is not None and (seen.member.ref, seen.release, seen.generation) == (reward, first.id, 1)
    other = registry.publish(make_checkpoint(mark="other"), name="pol", kind="policy", metadata=METADATA)
    registry.promote("default", registry.create_release(other, reward).id, expected_generation=1, by="test")
    assert (await follower.channel.read()) != seen and follower.channel.problem is None
    await follower.channel.read()
    assert follower.generations == [1, 2], "an unchanged channel is not read again"


async def test_what_was_known_stays_through_trouble(registry: Registry, policy: ModelRef, reward: ModelRef) -> None:
    follower = Follower(registry)
    registry.promote("default", registry.create_release(policy, reward).id, expected_generation=None, by="test")
    known = await follower.channel.read()
    pointer = registry.root / "channels" / "default.json"
    whole = pointer.read_text()
    pointer.write_text("{")
    assert await follower.channel.read() == known and follower.errors == 1 and follower.channel.problem
    pointer.write_text(json.dumps(json.loads(whole) | {"generation": 0}))
    assert await follower.channel.read() == known, "generations only grow"
    pointer.write_text(whole + " ")
    assert await follower.channel.read() == known and follower.channel.problem is None
