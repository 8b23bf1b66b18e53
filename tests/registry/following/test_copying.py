"""A copy that nobody waits for any more is given up, and one that is made is whole."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from acemath_registry import ModelRef, Registry, ReleaseMember
from acemath_registry.following import copied, copying


def member_of(registry: Registry, ref: ModelRef) -> ReleaseMember:
    digest = hashlib.sha256((registry.path(ref) / "manifest.json").read_bytes()).hexdigest()
    return ReleaseMember(name=ref.name, version=ref.version, manifest_sha256=digest)


async def test_the_copy_is_verified_and_private(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    directory = await copied(registry, member_of(registry, policy), tmp_path / "cache")
    registry.verify(policy, directory)


async def test_who_is_cancelled_leaves_no_copy_and_no_thread(
    registry: Registry, policy: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    real = registry.private_copy

    def held(ref: ModelRef, cache: Path, *, progress: Any, **more: Any) -> Path:
        def slow(phase: str, done: int, total: int) -> None:
            begun.set()
            assert go_on.wait(30)
            progress(phase, done, total)

        try:
            return real(ref, cache, progress=slow, **more)
        finally:
            ended.set()

    monkeypatch.setattr(registry, "private_copy", held)
    waiting = asyncio.create_task(copied(registry, member_of(registry, policy), tmp_path / "cache"))
    await asyncio.to_thread(begun.wait, 30)
    waiting.cancel()
    await asyncio.sleep(0.05)
    assert not waiting.done(), "the chunk under way is waited for"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
    assert not [path for path in (tmp_path / "cache" / policy.name).iterdir() if path.is_dir()]


async def test_a_disk_that_hangs_holds_its_thread_and_nobody_else(
    registry: Registry, policy: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hanging(*given: Any, **more: Any) -> Path:
        begun.set()
        assert go_on.wait(30)
        raise OSError("it came back")

    monkeypatch.setattr(registry, "private_copy", hanging)
    monkeypatch.setattr(copying, "_PATIENCE_SECONDS", 0.05)
    waiting = asyncio.create_task(copied(registry, member_of(registry, policy), tmp_path))
    await asyncio.to_thread(begun.wait, 30)
    waiting.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 10)
    finally:
        go_on.set()
