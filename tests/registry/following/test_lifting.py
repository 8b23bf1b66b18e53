"""What is tried again and what is given up, whatever the service."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from acemath_core.wire import SlotState
from acemath_registry import (
    DiskFull,
    ModelRef,
    NotFound,
    Registry,
    RejectReason,
    ReleaseMember,
    StorageError,
    VerificationError,
)
from acemath_registry.following import FollowedVersion, Lifting, Patience, copied

S = SlotState


class Bad(Exception):
    pass


class Busy(Exception):
    pass


_BAD = (Bad, VerificationError)


class Lift(Lifting[FollowedVersion]):
    """Each attempt does what comes next in `script`: raises it, or is ready."""

    def __init__(self, script: list[Exception | None], versions: list[FollowedVersion], registry: Registry) -> None:
        self.script, self.rejected, self.phases, self.freed = script, 0, list[str](), 0
        self.spaces = 0
        super().__init__(
            Patience(attempts=3, backoff_max_seconds=0.001, bad=_BAD, transient=(Busy, StorageError, NotFound)),
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


Mount = Callable[[], None]


def unmounted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
    """The place where it was mounted is empty but for what this replica has written there since; how it comes back."""
    root.rename(root.with_name("elsewhere"))
    Registry(root).write_status("policy", "0", {"slots": []})

    def back() -> None:
        root.rename(root.with_name("beneath"))
        root.with_name("elsewhere").rename(root)

    return back


def not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
    root.rename(root.with_name("elsewhere"))
    return lambda: (root.with_name("elsewhere").rename(root), None)[1]


def failing(number: int) -> Callable[[Path, pytest.MonkeyPatch], Mount]:
    def fail(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
        def refuse(real: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(str(root)):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **kwargs)

        for name in ("stat", "lstat", "open", "scandir"):
            monkeypatch.setattr(os, name, partial(refuse, getattr(os, name)))
        return monkeypatch.undo

    return fail


class Copying(Lift):
    """Each attempt makes the private copy; ahead of the seventh the registry comes back."""

    def __init__(self, versions: list[FollowedVersion], registry: Registry, cache: Path, back: Mount) -> None:
        super().__init__([], versions, registry)
        self.cache, self.back = cache, back

    async def _attempt(self, version: FollowedVersion) -> None:
        if self.freed == 7:
            self.back()
        await copied(self._registry, version.member, self.cache)
        version.move(S.READY)


@pytest.mark.parametrize(
    "away",
    [unmounted, not_there, *(failing(number) for number in (errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EACCES))],
    ids=["unmounted", "not there", "ESTALE", "EIO", "ENOTCONN", "EACCES"],
)
async def test_a_registry_that_is_away_rejects_nothing(
    registry: Registry,
    policy: ModelRef,
    reward: ModelRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    away: Callable[[Path, pytest.MonkeyPatch], Mount],
) -> None:
    member = (release := registry.create_release(policy, reward)).policy
    registry.promote("default", release.id, expected_generation=None, by="me")
    versions = [FollowedVersion(member, 1, {release.id}), version(S.ACTIVE)]
    lift = Copying(versions, registry, tmp_path / "cache", away(registry.root, monkeypatch))
    lift.up(versions[0])
    assert versions[0].work is not None
    await versions[0].work
    assert (versions[0].state, versions[0].failures, lift.freed) == (S.READY, 0, 7)
    registry.verify(policy, tmp_path / "cache" / policy.name / policy.version)


def missing_base() -> VerificationError:
    error = VerificationError(RejectReason.BASE_MISSING, "base@s1 is not in the registry")
    error.__cause__ = NotFound("base@s1")
    return error


@pytest.mark.parametrize(
    ("script", "there", "state", "left"),
    [
        ([NotFound("x")] * 5 + [None], False, S.READY, 0),
        ([NotFound("x")] * 5 + [None], True, S.REJECTED, 3),
        ([missing_base(), missing_base(), None], False, S.READY, 0),
        ([missing_base(), missing_base(), None], True, S.REJECTED, 2),
        ([VerificationError(RejectReason.CHECKSUM_MISMATCH, "bits"), None], False, S.REJECTED, 1),
    ],
)
async def test_what_is_missing_counts_where_the_registry_is_there(
    registry: Registry,
    policy: ModelRef,
    reward: ModelRef,
    script: list[Exception | None],
    there: bool,
    state: S,
    left: int,
) -> None:
    if there:
        registry.promote("default", registry.create_release(policy, reward).id, expected_generation=None, by="me")
    script, versions = list(script), [version(), version(S.ACTIVE)]
    lift = Lift(script, versions, registry)
    lift.up(versions[0])
    assert versions[0].work is not None
    await versions[0].work
    assert (versions[0].state, len(script)) == (state, left)


async def test_the_longest_wait_is_a_wait_however_many_failed(registry: Registry) -> None:
    await Lift([], [], registry)._wait(5000)


def test_the_same_state_with_another_reason_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Callable[[], float] = iter([2.0, 3.0]).__next__
    one = version()
    monkeypatch.setattr("acemath_registry.following.version.time.time", clock)
    one.move(S.STAGING)
    one.move(S.STAGING, "waits")
    assert (one.since, one.reason) == (2.0, "waits")
