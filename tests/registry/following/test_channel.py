"""A follower sees promotions, keeps what it knew through trouble, and never goes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from registry.tiny import METADATA

from acemath_registry import ModelKind, ModelRef, Registry, StorageError
from acemath_registry.following import ChannelFollower, StatusFile, StatusLeases


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


class Hanging:
    """Calls that come back when they are let go."""

    def __init__(self) -> None:
        self.let_go, self.calls = threading.Event(), 0

    def __call__(self, *given: object) -> None:
        self.calls += 1
        assert self.let_go.wait(60)
        raise StorageError("it hung")


async def test_a_registry_that_hangs_holds_one_thread_and_no_round(
    registry: Registry, policy: ModelRef, reward: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acemath_registry.following.slow.ANSWER_SECONDS", 0.05)
    follower, failed = Follower(registry), list[str]()
    registry.promote("default", registry.create_release(policy, reward).id, expected_generation=None, by="test")
    leases = StatusLeases(registry, "default", 30)
    status = StatusFile(registry, "policy", "0", lambda: failed.append("status"))
    hanging = {name: Hanging() for name in ("channel_mark", "statuses", "write_status")}
    with monkeypatch.context() as patch:
        for name, hang in hanging.items():
            patch.setattr(registry, name, hang)
        for look in (1, 2):
            assert await follower.channel.read() is None and follower.errors == look
            usage = await leases.usage()
            assert usage.unknown is not None and "does not answer" in usage.unknown
            await status.write({"look": look})
        assert failed == ["status"] * 2 and "does not answer" in str(follower.channel.problem)
        assert [hang.calls for hang in hanging.values()] == [1, 1, 1], "the open call is kept"
    for hang in hanging.values():
        hang.let_go.set()
    monkeypatch.setattr("acemath_registry.following.slow.ANSWER_SECONDS", 30.0)
    found = await follower.channel.read()
    assert found is not None and found.generation == 1 and follower.channel.problem is None
    assert (await leases.usage()).unknown == "no gateway has written a record"
    await status.write({"look": 3})
    assert registry.read_status("policy", "0")["look"] == 3
