"""A process that is killed, or refused, at every single change of the disk: no reader ever sees a half."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.adapters.tiny import publish_base, publish_on, write_adapter
from registry.faults import LOOKS, patched_changes, run_failing_at, run_killed_at
from registry.keys import make_keys
from registry.tiny import METADATA

from acemath_core.errors import ServiceError
from acemath_registry import Channel, ModelRef, Registry, StorageError
from acemath_registry.stores.staging import sweep_staging

MAX_STEPS = 300


def publish(registry: Registry, source: Path) -> ModelRef:
    return registry.publish(source, name="pol", kind="policy", metadata=METADATA)


def quietly(action: Callable[[], Any]) -> Any:
    """Run without fsync, which costs milliseconds and shows nothing here."""
    with patched_changes(lambda name, args: None):
        return action()


def check_nothing_half(registry: Registry) -> list[ModelRef]:
    visible = registry.versions()
    for ref in visible:
        registry.verify(ref)
    return visible


def test_publish_killed_at_every_step(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    source = make_checkpoint()
    expected = quietly(lambda: publish(Registry(tmp_path / "expected"), source))
    visible_from = None
    for step in range(MAX_STEPS):
        registry = Registry(tmp_path / f"registry-{step}")
        killed = run_killed_at(step, lambda registry=registry: publish(registry, source))
        visible = check_nothing_half(registry)
        if visible and visible_from is None:
            visible_from = step
        assert visible == ([expected] if visible_from is not None else []), f"step {step}"
        assert quietly(lambda registry=registry: publish(registry, source)) == expected
        registry.verify(expected)
        sweep_staging(registry.root / "staging", stale_after_s=-1.0)
        assert list((registry.root / "staging").iterdir()) == []
        if not killed:
            break
    assert not killed and step > 40, "every step was reached"


def test_publish_refused_at_every_step(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    source = make_checkpoint()
    for step in range(MAX_STEPS):
        registry = Registry(tmp_path / f"registry-{step}")
        try:
            reached = run_failing_at(step, OSError(errno.ENOSPC, "no space"), lambda r=registry: publish(r, source))
        except StorageError as error:
            reached = True
            assert "no space left" in error.message
        visible = check_nothing_half(registry)
        assert not list(registry.root.glob("staging/*/version/*")), f"step {step} left files"
        ref = quietly(lambda registry=registry: publish(registry, source))
        assert visible in ([], [ref])
        if not reached:
            break
    assert not reached and step > 40


def test_order_of_publish(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    """Against a power cut: files are synced before their names, the manifest last, the rename after all."""
    events: list[tuple[str, str]] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        where = os.readlink(f"/proc/self/fd/{args[0]}") if name in {"fsync", "fchmod", "write"} else str(args[0])
        events.append((name, where))

    registry = Registry(tmp_path / "registry")
    with patched_changes(before):
        ref = publish(registry, make_checkpoint())
    rename = next(i for i, (name, _) in enumerate(events) if name == "rename")
    staged = events[rename][1]
    synced = [where for name, where in events[:rename] if name == "fsync" and where.startswith(staged)]
    files = [Path(where).name for where in synced if where != staged]
    assert sorted(files) == sorted(path.name for path in registry.path(ref).iterdir())
    assert files[-1] == "manifest.json" and synced[-1] == staged
    last_change = max(
        i for i, (name, where) in enumerate(events[:rename]) if name == "write" and where.startswith(staged)
    )
    assert last_change < events.index(("fsync", synced[-2])) < events.index(("fsync", staged))
    assert events[rename + 1 :][1] == ("fsync", str(registry.path(ref).parent))


def test_private_copy_killed_at_every_step(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    for step in range(MAX_STEPS):
        cache = tmp_path / f"cache-{step}"
        killed = run_killed_at(step, lambda cache=cache: registry.private_copy(policy, cache))
        target = cache / policy.name / policy.version
        if target.exists():
            registry.verify(policy, target)
        assert quietly(lambda cache=cache: registry.private_copy(policy, cache)) == target
        left = {path.name for path in target.parent.iterdir()}
        assert left == {policy.version, f".{policy.version}.lock"}
        if not killed:
            break
    assert not killed and step > 20


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_private_copy_refused_at_every_step(registry: Registry, policy: ModelRef, tmp_path: Path, number: int) -> None:
    for step in range(MAX_STEPS):
        cache = tmp_path / f"cache-{step}"
        try:
            reached = run_failing_at(step, OSError(number, "no"), lambda c=cache: registry.private_copy(policy, c))
        except StorageError:
            reached = True
            assert not list(cache.glob("*/.*.partial-*/*")), f"step {step} left files"
        registry.verify(policy, quietly(lambda cache=cache: registry.private_copy(policy, cache)))
        if not reached:
            break
    assert not reached and step > 20


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_a_mount_that_fails_at_any_look_is_told_as_that(registry: Registry, tmp_path: Path, number: int) -> None:
    """Of an adapter version on its base, with a signature: all that there is to look at."""
    ours, _ = make_keys(tmp_path)
    base = publish_base(registry, tmp_path / "base")
    ref = publish_on(registry, write_adapter(tmp_path / "adapter"), base, signer=ours)
    trusting = Registry(registry.root, trusted=ours.trusted())
    for use in (trusting.verify, lambda ref: trusting.private_copy(ref, tmp_path / "cache")):
        use(ref)  # what is imported at the first use is imported
        step, reached = 0, True
        while reached:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            try:
                reached = run_failing_at(step, OSError(number, "no"), lambda use=use: use(ref), LOOKS)
            except StorageError as error:
                assert isinstance(error.__cause__, OSError), step
            step += 1
        assert step > 15


def test_promote_killed_and_refused_at_every_step(
    registry: Registry, policy: ModelRef, reward: ModelRef, make_checkpoint: Callable[..., Path]
) -> None:
    other = registry.publish(make_checkpoint(mark="other"), name="pol", kind="policy", metadata=METADATA)
    first, second = (registry.create_release(ref, reward).id for ref in (policy, other))

    def at_first(channel: str) -> Channel:
        return registry.promote(channel, first, expected_generation=0, by="test")

    for step in range(MAX_STEPS):
        channel = f"channel-{step}"
        quietly(lambda channel=channel: at_first(channel))

        def change(channel: str = channel) -> Channel:
            return registry.promote(channel, second, expected_generation=1, by="test")

        killed = run_killed_at(step, change)
        found = registry.channel(channel)
        assert (found.release, found.generation) in {(first, 1), (second, 2)}
        refused = f"refused-{step}"
        quietly(lambda refused=refused: at_first(refused))
        try:
            run_failing_at(step, OSError(errno.EIO, "no"), lambda refused=refused: change(refused))
        except ServiceError:
            found = registry.channel(refused)
            assert (found.release, found.generation) in {(first, 1), (second, 2)}
        after = quietly(lambda channel=channel: registry.promote(channel, second, expected_generation=None, by="test"))
        assert (after.release, after.generation) == (second, 2)
        if not killed:
            break
    assert not killed and step > 5
