"""A reward version that is an adapter of PEFT on another: what the engine serves, and what it never sees."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from reward.publishing import publish_reward
from reward.replica import Replica, canary_of
from reward.tiny import make_model
from reward.world import S
from safetensors.torch import load_file, save_file

from acemath_core.prompts import reward_messages
from acemath_prompts import PromptEncoder
from acemath_registry import ModelRef, PublishMetadata

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trained(directory: Path) -> tuple[Path, torch.nn.Module]:
    """What PEFT saves of an adapter on the first export, and the model that it makes itself by merging."""
    torch.manual_seed(5)
    config = peft.LoraConfig(r=3, lora_alpha=4, target_modules=TARGETS, task_type="FEATURE_EXTRACTION")
    model = peft.get_peft_model(make_model("llama", 1).to(torch.bfloat16), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    return directory, model.merge_and_unload()


def publish_on(replica: Replica, source: Path, canary: dict[str, Any] | None = None) -> ModelRef:
    metadata = PublishMetadata(step=4, licence="Apache-2.0", canary=canary)
    return replica.world.registry.publish(
        source, name="rew", kind="reward", metadata=metadata, adapter_of=replica.first
    )


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    return trained(tmp_path / "adapter")


async def test_the_engine_serves_what_peft_merges(
    replica: Replica,
    adapter: tuple[Path, torch.nn.Module],
) -> None:
    source, merged = adapter
    ref = publish_on(replica, source)
    replica.world.promote(ref)
    await replica.until(ref, S.ACTIVE)
    copy = replica.world.loaded[-1]
    assert copy.name == ref.version
    ours, theirs = load_file(copy / "model.safetensors"), merged.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():  # PEFT merges in bfloat16: both round, ours once
        torch.testing.assert_close(weight, theirs[name], rtol=2**-6, atol=2**-7, msg=name)
    encoder, scores = PromptEncoder.from_directory(copy), await replica.scores()
    for text, score in zip(["2", "three", "\\boxed{2}"], scores, strict=True):
        ids = encoder.encode_conversation(reward_messages("1 + 1?", text))
        with torch.inference_mode():
            expected = float(merged.float()(input_ids=torch.tensor([ids])).logits[0, 0])
        assert score == pytest.approx(expected, abs=0.2)
    assert scores != replica.bits


async def test_a_sign_that_flipped_is_told_by_the_canary_and_the_way_back_gives_the_same_bits(
    replica: Replica,
    adapter: tuple[Path, torch.nn.Module],
) -> None:
    source, merged = adapter
    world = replica.world
    canary = canary_of(merged, PromptEncoder.from_directory(world.registry.path(replica.first)))
    good = publish_on(replica, source, canary)
    flip(source / "adapter_model.safetensors")
    await replica.rejects(publish_on(replica, source, canary), "canary scores differ")
    world.promote(good)
    await replica.until(good, S.ACTIVE)
    assert await replica.scores() != replica.bits
    world.promote(replica.first)
    await replica.until(replica.first, S.ACTIVE)
    assert await replica.scores() == replica.bits


def flip(weights: Path) -> None:
    """The sign of one tensor, in what PEFT saved."""
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if "down_proj.lora_B" in name)
    save_file(tensors | {name: -tensors[name]}, weights, metadata={"format": "pt"})


async def test_without_its_base_the_old_one_goes_on(
    replica: Replica,
    adapter: tuple[Path, torch.nn.Module],
) -> None:
    registry = replica.world.registry
    bad = publish_on(replica, adapter[0])
    base = registry.path(replica.first)
    await replica.rejects(bad, "[base_missing]", lambda directory: shutil.move(base, base.with_name("aside")))
    shutil.move(base.with_name("aside"), base)
    await replica.takes_the_next()
    assert publish_reward(registry, replica.exports.first) == replica.first
