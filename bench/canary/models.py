"""Checkpoints to load: good ones that differ, and ones that are wrong as a broken export or a broken load is."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

Change = Callable[[PreTrainedModel], None]
_OWN = ("model.safetensors", "config.json", "manifest.json", "model.sig")


def write(source: Path, into: Path, change: Change) -> Path:
    """A copy of `source` with its weights changed, in bfloat16; tokenizer and template as they are."""
    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.bfloat16)
    with torch.no_grad():
        change(model)
    shutil.copytree(source, into, ignore=shutil.ignore_patterns(*_OWN))
    model.save_pretrained(into)
    return into


def trained_on(seed: int, share: float = 0.02) -> Change:
    """As some more training leaves it: each tensor moved at random by a share of its own size."""

    def change(model: PreTrainedModel) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weight += noise * weight.float().std().nan_to_num(0.0).to(weight.dtype) * share

    return change


def left_at_zero(model: PreTrainedModel) -> None:
    """One tensor that nobody wrote."""
    model.model.layers[11].mlp.down_proj.weight.zero_()


def uninitialised(model: PreTrainedModel) -> None:
    """One tensor of random numbers of its own size."""
    weight = model.model.layers[4].self_attn.o_proj.weight
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.float().std())


def other_sign(model: PreTrainedModel) -> None:
    """One tensor with the other sign."""
    model.model.layers[20].self_attn.v_proj.weight.neg_()


def swapped_layers(model: PreTrainedModel) -> None:
    """Two layers that stand in each other's place."""
    first, second = (copy.deepcopy(model.model.layers[place].state_dict()) for place in (10, 11))
    model.model.layers[10].load_state_dict(second)
    model.model.layers[11].load_state_dict(first)


def stale_head(model: PreTrainedModel) -> None:
    """A tied head that stayed what it was before the embedding was trained on."""
    head = model.get_input_embeddings().weight.clone()
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(2)).to(head.dtype)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head + noise * head.float().std().to(head.dtype) * 0.3)


def eight_bits(model: PreTrainedModel) -> None:
    """Every weight rounded to an eight-bit float."""
    for weight in model.parameters():
        weight.copy_((weight * 4).to(torch.float8_e5m2).to(weight.dtype) / 4)


def other_theta(directory: Path) -> None:
    """config.json names another base of the rotary embedding."""
    config = AutoConfig.from_pretrained(str(directory))
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 10_000.0}
    config.save_pretrained(directory)


WRONG: dict[str, Change] = {
    "a tensor left at zero": left_at_zero,
    "an uninitialised tensor": uninitialised,
    "a tensor of the other sign": other_sign,
    "two layers swapped": swapped_layers,
    "a stale tied head": stale_head,
    "weights rounded to eight bits": eight_bits,
}
