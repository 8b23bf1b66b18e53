"""What is tried again and what is given up, whatever the service."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from acemath_core.wire import SlotState
from acemath_registry import DiskFull, Registry, ReleaseMember, StorageError
from acemath_registry.following import FollowedVersion, Lifting, Patience

S = SlotState


class Bad(Exception):
    pass


class Busy(Exception):
    pass


class Lift(Lifting[FollowedVersion]):
    """Each attempt does what comes next in `script`: raises it, or is ready."""

    def __init__(self, script: list[Exception | None], versions: list[FollowedVersion], registry: Registry) -> None:
        self.script, self.rejected, self.phases, self.freed = script, 0, list[str](), 0
        self.spaces = 0
        super().__init__(
            Patience(attempts=3, backoff_max_seconds=0.001, bad=(Bad,), transient=(Busy, StorageError)),
            versions,
            registry=registry,
            replica="policy/0",
            on_rejected=self._count,
            on_phase=lambda phase, seconds: self.phases.append(phase),
        )

    def _count(self) -> None:
        self.rejected += 1

    async def _let_go(self, version: FollowedVersion) -> None:
        self.freed += 1

    async def _make_space(self) -> None:
        self.spaces += 1

    async def _attempt(self, version: FollowedVersion) -> None:
        version.move(S.STAGING)
        with self._timed("stage"):
            error = self.script.pop(0)
            if error is not None:
                raise error
        version.move(S.READY)


def version(state: S = S.VERIFYING) -> FollowedVersion:
    member = ReleaseMember(name="p", version="s1-aaaaaaaaaaaa", manifest_sha256="a" * 64)
    return FollowedVersion(member, 1, {"r-1"}, state)


@pytest.mark.parametrize(
    ("script", "other", "state", "reason", "left"),
    [
        ([None], None, S.READY, None, 0),
        ([Busy("no port"), Busy("no port"), Busy("no port"), None], None, S.READY, None, 0),
        ([Busy("a"), Busy("b"), Busy("c"), None], S.ACTIVE, S.REJECTED, "c", 1),
        ([Busy("a"), Busy("b"), Busy("c"), None], S.STAGING, S.READY, None, 0),
        ([StorageError("s3")] * 5 + [None], S.ACTIVE, S.READY, None, 0),
        ([StorageError("s3"), Busy("a"), StorageError("s3"), Busy("b"), Busy("c"), None], S.ACTIVE, S.REJECTED, "c", 1),
        ([DiskFull("full")] * 5 + [None], S.ACTIVE, S.READY, None, 0),
        ([Bad("checksum"), None], None, S.REJECTED, "checksum", 1),
        ([Busy("a"), Bad("checksum"), None], None, S.REJECTED, "checksum", 1),
        ([KeyError("x"), None], S.ACTIVE, S.READY, None, 0),
        ([MemoryError("x")] * 3 + [None], S.ACTIVE, S.REJECTED, "MemoryError; see this replica's log", 1),
        ([MemoryError("x")] * 5 + [None], None, S.READY, None, 0),
    ],
    ids=[
        "good",
        "tried for ever alone",
        "given up beside another",
        "one that comes",
        "a registry that is away",
        "that is away, and a bad one",
        "a full disk",
        "bad",
        "bad later",
        "short of memory for a moment",
        "what nobody foresaw, again and again",
        "and nothing else serves",
    ],
)
async def test_tried_again_or_given_up(
    registry: Registry, script: list[Exception | None], other: S | None, state: S, reason: str | None, left: int
) -> None:
    versions, full = [version(), *([version(other)] if other else [])], sum(isinstance(e, DiskFull) for e in script)
    lift = Lift(script, versions, registry)
    lift.up(versions[0])
    assert versions[0].work is not None and versions[0].busy
    await versions[0].work
    assert (versions[0].state, versions[0].reason, len(script)) == (state, reason, left)
    assert lift.rejected == (state is S.REJECTED) and lift.phases == (["stage"] if state is S.READY else [])
    noted = [(entry.by, entry.what, entry.why) for entry in registry.log()]
    assert noted == ([("policy/0", str(versions[0].ref), reason)] if state is S.REJECTED else [])
    assert lift.spaces == full
    assert lift.freed >= 1 and versions[0].leaving is (state is S.REJECTED)


async def test_the_longest_wait_is_a_wait_however_many_failed(registry: Registry) -> None:
    await Lift([], [], registry)._wait(5000)


def test_the_same_state_with_another_reason_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Callable[[], float] = iter([2.0, 3.0]).__next__
    one = version()
    monkeypatch.setattr("acemath_registry.following.version.time.time", clock)
    one.move(S.STAGING)
    one.move(S.STAGING, "waits")
    assert (one.since, one.reason) == (2.0, "waits")
