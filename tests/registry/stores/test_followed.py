"""The services on a registry in a bucket: published and promoted by the command, followed, verified, swapped."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from registry.tiny import read_safetensors, safetensors_bytes
from reward.tiny import write_checkpoint
from reward.world import S, World
from typer.testing import CliRunner

from acemath_gateway.adapters.status_file import StatusFileLeases
from acemath_gateway.pointer import ChannelWatch
from acemath_gateway.prompts import RegistryEncoders
from acemath_registry import ModelRef, Registry
from acemath_registry.cli import app
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.settings import RewardSettings


class Cli:
    def __init__(self, root: str) -> None:
        self._root = root

    def __call__(self, *arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--root", self._root, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def cli(address: str) -> Cli:
    return Cli(address)


@pytest.fixture
async def world(address: str, tmp_path: Path) -> AsyncIterator[World]:
    settings = RewardSettings(
        registry_root=address, cache_dir=tmp_path / "cache", drain_quiet_seconds=0, spare_copies=0, stuck_seconds=1.0
    )
    made = World(Registry(settings.registry_root), tmp_path, settings)
    made.make = lambda directory: load_engine(directory, place("cpu", "bfloat16", threads=1))
    yield made
    await asyncio.to_thread(made.batcher.close)
    await made.reconciler.close()
    made.service.close()


def released(cli: Cli, folder: Path, seed: int) -> tuple[ModelRef, ModelRef]:
    """A policy and a reward version of a real tiny model, promoted on `default`."""
    reward = write_checkpoint(folder / f"reward-{seed}", "llama", seed)
    policy = folder / f"policy-{seed}"
    shutil.copytree(reward, policy)
    config = json.loads((policy / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (policy / "config.json").write_text(json.dumps(config))
    tensors = read_safetensors(policy / "model.safetensors")
    del tensors["score.weight"]
    (policy / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    common = ("--step", str(seed), "--licence", "Apache-2.0")
    found = [
        cli("publish", str(directory), "--name", name, "--kind", kind, *common)["model"]
        for directory, name, kind in ((policy, "pol", "policy"), (reward, "rew", "reward"))
    ]
    new = ("--new",) if seed == 1 else ()
    cli("promote", "default", "--policy", found[0], "--reward", found[1], "--by", "me", *new)
    return ModelRef.parse(found[0]), ModelRef.parse(found[1])


async def test_promoted_in_a_bucket_served_from_a_private_copy_and_swapped(
    cli: Cli, world: World, tmp_path: Path
) -> None:
    policy, first = released(cli, tmp_path, 1)
    await world.rounds(lambda: world.states().get(str(first)) is S.ACTIVE)
    assert await world.score() == str(first)
    assert world.loaded[0].is_relative_to(world.settings.cache_dir)
    status = world.registry.read_status("reward", world.settings.instance)
    assert status["generation"] == 1, "its status lies in the bucket"

    gateway = StatusFileLeases(world.registry, instance="g1", channel="default")
    watch = ChannelWatch(world.registry, "default")
    (pointer,) = watch.read()
    assert (pointer.policy, pointer.reward, pointer.generation) == (str(policy), str(first), 1)
    prompts = await RegistryEncoders(world.registry).load(
        pointer.policy, manifest_sha256=pointer.policy_manifest_sha256
    )
    assert await prompts.encode([{"role": "user", "content": "1 + 1?"}])

    _, second = released(cli, tmp_path, 2)
    assert [one.generation for one in watch.read()] == [2, 1]
    await world.rounds(lambda: world.states().get(str(second)) is S.ACTIVE)
    assert await world.score() == str(second) and world.states()[str(first)] is S.DRAINING
    await gateway.assert_leases(2, watch.read()[0].release, {})
    await world.rounds(lambda: world.states().get(str(first)) is S.RETIRED)
    await gateway.withdraw()
    await gateway.withdraw()
    assert world.registry.statuses("gateway") == {}

    assert [row["event"] for row in cli("log", "default")["log"]] == ["promote", "promote"]
    overview = cli("list")
    assert [len(overview[kind]) for kind in ("versions", "releases", "channels")] == [4, 2, 1]
    assert cli("show", "default")["generation"] == 2
    assert {row["model"] for row in cli("verify", "default")["verified"]} == {str(second), overview_policy(overview)}
    assert cli("rollback", "default", "--by", "me")["generation"] == 3
    planned = cli("gc", "--newest", "0", "--age-hours", "0")["planned"]
    assert {row["action"] for row in planned} == {"keep"}


def overview_policy(overview: dict[str, Any]) -> str:
    """The policy version of the second step."""
    return next(row["model"] for row in overview["versions"] if row["model"].startswith("pol@s2-"))


def test_where_nothing_is_the_command_says_so(address: str) -> None:
    result = CliRunner().invoke(app, ["list", "--root", address])
    assert result.exit_code == 1 and f"there is no registry at {address}" in result.stderr.replace("\n", "")
