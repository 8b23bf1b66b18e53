"""Fault matrix: whatever is wrong with the version that is promoted, the one that serves goes on with the same bits.

Real parts: registry, replica, engine with tiny random models. A fault is put in after publishing, so that the manifest
tells it, or before (a broken export), so that only what is loaded can.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from registry.damage import (
    Damage,
    append,
    flip,
    list_another,
    replace_by_link,
    truncate,
    with_manifest,
    with_tensors,
)
from registry.faults import run_killed_at
from reward.publishing import publish_reward
from reward.replica import Replica
from reward.tiny import CHATML
from reward.world import S

from acemath_registry import publish as registry_publish
from acemath_registry.stores import disk as registry_disk

LAST = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(directory: Path) -> None:
        document = json.loads((directory / name).read_text())
        change(document)
        (directory / name).write_text(json.dumps(document))

    return damage


def flip_end_of(name: str, text: str) -> Damage:
    """One bit of the last letter of a text that the file holds."""

    def damage(directory: Path) -> None:
        found = (directory / name).read_bytes().index(text.encode())
        flip(directory / name, found + len(text) - 1)

    return damage


HEAD = "score.weight"
AFTERWARDS: dict[str, tuple[Damage, str]] = {
    "truncated shard": (lambda d: truncate(d / LAST, -9), "[truncated]"),
    "bytes after a shard": (lambda d: append(d / LAST), "[header_malformed]"),
    "missing shard": (lambda d: (d / LAST).unlink(), "[file_missing]"),
    "bit of a shard": (lambda d: flip(d / LAST), "[checksum_mismatch]"),
    "bit of the index": (flip_end_of(INDEX, HEAD), "[index_mismatch]"),
    "bit of the config": (flip_end_of("config.json", "silu"), "[checksum_mismatch]"),
    "bit of the tokenizer": (flip_end_of("tokenizer.json", "ByteLevel"), "[checksum_mismatch]"),
    "bit of the template": (flip_end_of("chat_template.jinja", "assistant"), "[checksum_mismatch]"),
    "bit of the manifest": (flip_end_of("manifest.json", "Apache-2.0"), "[manifest_edited]"),
    "missing tensor": (with_tensors(lambda t: t.pop(HEAD)), "[index_mismatch]"),
    "extra tensor": (with_tensors(lambda t: t.update(x=("F32", [1], b"1234"))), "[index_mismatch]"),
    "renamed tensor": (with_tensors(lambda t: t.update(y=t.pop(HEAD))), "[index_mismatch]"),
    "wrong shape": (with_tensors(lambda t: t.update({HEAD: ("BF16", [96, 1], t[HEAD][2])})), "[tensor_shapes]"),
    "wrong dtype": (with_tensors(lambda t: t.update({HEAD: ("F16", [1, 96], t[HEAD][2])})), "[tensor_dtypes]"),
    "NaN": (lambda d: (d / LAST).write_bytes((d / LAST).read_bytes()[:-2] + b"\xff\x7f"), "[checksum_mismatch]"),
    "wrong tokenizer": (lambda d: (d / "tokenizer.json").write_text('{"model": {}}'), "[size_mismatch]"),
    "wrong template": (lambda d: (d / "chat_template.jinja").write_text("{{ messages }}"), "[size_mismatch]"),
    "pickle": (lambda d: (d / "training_args.bin").write_bytes(b"\x80\x04N."), "[pickle]"),
    "code": (lambda d: (d / "modeling_x.py").write_text("1"), "[python_code]"),
    "symlink": (replace_by_link("config.json"), "[symlink]"),
    "path out of the index": (
        edit_json(INDEX, lambda i: i["weight_map"].update({HEAD: "../../../x.safetensors"})),
        "[path_traversal]",
    ),
    "path out of the manifest": (list_another("../../etc/passwd"), "[manifest_edited]"),
    "wrong digest": (with_manifest(lambda m: m["files"][0].update(sha256="0" * 64)), "[manifest_edited]"),
    "edited canary": (with_manifest(lambda m: m.update(canary=None)), "[manifest_edited]"),
}


@pytest.mark.parametrize("fault", AFTERWARDS)
async def test_what_is_damaged_after_publishing_changes_nothing(replica: Replica, fault: str) -> None:
    damage, reason = AFTERWARDS[fault]
    bad = publish_reward(replica.world.registry, replica.exports.sharded, canary=replica.exports.canary, step=3)
    await replica.refuses(bad, reason, damage)


def another_tokenizer(directory: Path) -> None:
    document = json.loads((directory / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:40]
    (directory / "tokenizer.json").write_text(json.dumps(document))


def rounded(tensors: dict[str, Any]) -> None:
    """Every weight through eight bits, as an export in the wrong dtype leaves it."""
    for name, (dtype, shape, data) in tensors.items():
        values = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).to(torch.float8_e4m3fn).to(torch.bfloat16)
        tensors[name] = (dtype, shape, values.view(torch.uint8).numpy().tobytes())


def swap_layers(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        other = name.replace(".layers.0.", ".layers.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
CANARY, PROMPTS = "canary scores differ", "token ids of the canary's conversation"
EXPORTED: dict[str, tuple[Damage, str]] = {
    "missing tensor": (with_tensors(lambda t: t.pop(NORM)), f"tensors missing: {NORM}; not expected: none"),
    "extra tensor": (with_tensors(lambda t: t.update(x=("F32", [1], b"1234"))), "missing: none; not expected: x"),
    "renamed tensor": (with_tensors(lambda t: t.update(x=t.pop(NORM))), f"missing: {NORM}; not expected: x"),
    "wrong shape": (with_tensors(lambda t: t.update({HEAD: ("BF16", [96, 1], t[HEAD][2])})), "has shape (96, 1)"),
    "whole numbers": (with_tensors(lambda t: t.update({HEAD: ("I16", [1, 96], t[HEAD][2])})), "stored as torch.int16"),
    "another dtype's bytes": (with_tensors(lambda t: t.update({HEAD: ("F16", [1, 96], t[HEAD][2])})), CANARY),
    "rounded to eight bits": (with_tensors(rounded), CANARY),
    "a tensor of zeros": (with_tensors(lambda t: t.update({DOWN: (*t[DOWN][:2], bytes(len(t[DOWN][2])))})), CANARY),
    "swapped layers": (with_tensors(swap_layers), CANARY),
    "NaN that an older publisher let pass": (
        with_tensors(lambda t: t.update({HEAD: ("BF16", [1, 96], b"\xff\x7f" * 96)})),
        "holds values that are not finite",
    ),
    "wrong tokenizer": (another_tokenizer, PROMPTS),
    "wrong template": (lambda d: (d / "chat_template.jinja").write_text(CHATML.replace("'\n' +", "")), PROMPTS),
    "no template": (lambda d: (d / "chat_template.jinja").write_text("{% if %}"), "template"),
}


@pytest.mark.parametrize("fault", EXPORTED)
async def test_what_was_exported_wrong_changes_nothing(
    replica: Replica, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, reason = EXPORTED[fault]
    export = replica.world.directory / "export"
    shutil.copytree(replica.exports.plain, export)
    damage(export)
    for check in ("require_finite", "require_loadable"):  # an older publisher let it pass
        monkeypatch.setattr(registry_publish, check, lambda *given: None)
    bad = publish_reward(replica.world.registry, export, canary=replica.exports.canary, step=3)
    await replica.refuses(bad, reason)


async def test_what_was_exported_right_goes_in(replica: Replica) -> None:
    good = publish_reward(replica.world.registry, replica.exports.sharded, canary=replica.exports.canary, step=3)
    replica.world.promote(good)
    await replica.until(good, S.ACTIVE)
    details: Any = replica.world.reconciler.readiness().details["versions"]
    assert 0 < details[str(good)]["canary_difference"] < 0.2


async def test_a_disk_that_is_full_while_copying_changes_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    world, good = replica.world, publish_reward(replica.world.registry, replica.exports.sharded, step=3)
    with monkeypatch.context() as patch:
        patch.setattr(registry_disk, "copy_file", full)
        world.promote(good)
        await world.rounds(lambda: "no space left while copying" in str(world.reconciler.slots()[-1].reason))
        assert world.states() == {str(replica.first): S.ACTIVE, str(good): S.VERIFYING}
        assert world.reconciler.readiness().ready and await replica.scores() == replica.bits
        assert not list(world.settings.cache_dir.glob("rew/.*.partial-*"))
    await replica.until(good, S.ACTIVE)  # by itself, once there is space


async def test_copies_that_nobody_uses_go_when_the_disk_is_full(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = replica.world
    spare = world.settings.cache_dir / "rew" / "s0-000000000000"
    spare.mkdir(parents=True)
    copy_file, asked = registry_disk.copy_file, list[bool]()

    def full_while_it_lies_there(*given: Any) -> None:
        asked.append(spare.exists())
        if spare.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        copy_file(*given)

    monkeypatch.setattr(registry_disk, "copy_file", full_while_it_lies_there)
    good = publish_reward(world.registry, replica.exports.sharded, step=3)
    world.promote(good)
    await replica.until(good, S.ACTIVE)
    assert asked[0] and not asked[-1]
    assert (world.settings.cache_dir / "rew" / replica.first.version).exists(), "what serves keeps its own"


async def test_a_publisher_that_is_killed_changes_nothing(replica: Replica) -> None:
    registry, before = replica.world.registry, replica.world.registry.versions()
    for step in range(0, 40, 5):
        assert run_killed_at(step, lambda: publish_reward(registry, replica.exports.second, step=9))
        await replica.world.reconciler.round()
        assert registry.versions() == before and await replica.scores() == replica.bits
    await replica.takes_the_next()


async def test_a_rollback_gives_the_same_bits(replica: Replica) -> None:
    """While the old version drains, and when it was dropped and has to be loaded again."""
    world = replica.world
    await replica.takes_the_next()
    world.registry.rollback("default", by="test")
    await replica.until(replica.first, S.ACTIVE)
    assert await replica.scores() == replica.bits
    world.registry.rollback("default", by="test")
    world.gateway(generation=9)
    await replica.until(replica.first, S.RETIRED)
    world.registry.rollback("default", by="test")
    await replica.until(replica.first, S.ACTIVE)
    assert await replica.scores() == replica.bits
