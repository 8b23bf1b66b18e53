"""LoRA inside a model while it is trained, and its tensors as one safetensors file with a config.

Names on file are the plain module paths of the base (`model.layers.0.self_attn.q_proj.lora_A`), so that
merging needs neither peft nor the wrapper that training used.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acemath_training.errors import CheckpointError
from acemath_training.jobs.config import Lora

WEIGHTS = "adapter.safetensors"
CONFIG = "config.json"
PEFT = "peft"
"""Folder of the same adapter as PEFT writes it."""

_TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def inject(model: nn.Module, lora: Lora, *, head: str | None = None) -> nn.Module:
    """The model with adapters on every linear layer; `head` names a module trained in full beside them."""
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=_TARGETS,
    )
    wrapped: nn.Module = get_peft_model(model, config)
    if head is not None:
        wrapped.get_submodule(f"base_model.model.{head}").requires_grad_(True)
    return wrapped


def tensors(model: nn.Module, head: str | None = None) -> dict[str, Tensor]:
    """The trained tensors by their name on file, in bf16, on the CPU."""
    return trained(dict(model.named_parameters()), head)


def trained(values: Mapping[str, Tensor], head: str | None = None) -> dict[str, Tensor]:
    """The same out of all tensors of a model, which under ZeRO stage 3 had to be gathered first."""
    found = {}
    for name, value in values.items():
        plain = _plain(name)
        if ".lora_A" in plain or ".lora_B" in plain or (head is not None and plain == f"{head}.weight"):
            found[plain] = value.detach().to("cpu", torch.bfloat16).contiguous()
    return found


def restore(model: nn.Module, values: dict[str, Tensor], *, strict: bool) -> None:
    """Copy tensors of a file into the model's adapters.

    Raises:
        CheckpointError: when a tensor has no place or another shape, or (if `strict`) one is missing.
    """
    places = {_plain(name): parameter for name, parameter in model.named_parameters()}
    unknown = sorted(set(values) - set(places))
    if unknown:
        raise CheckpointError(f"the adapter has tensors the model lacks: {', '.join(unknown[:3])}")
    expected = {name for name in places if ".lora_" in name}
    if strict and expected - set(values):
        raise CheckpointError(f"the adapter lacks {len(expected - set(values))} tensors of the model")
    with torch.no_grad():
        for name, value in values.items():
            if places[name].shape != value.shape:
                raise CheckpointError(f"{name}: shape {tuple(value.shape)} instead of {tuple(places[name].shape)}")
            places[name].copy_(value)


def save(directory: Path, values: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write `adapter.safetensors` and `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(values.items())), str(directory / WEIGHTS))
    (directory / WEIGHTS).chmod(0o644)
    (directory / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def save_for_peft(directory: Path, values: dict[str, Tensor], lora: Lora) -> None:
    """Write an adapter without a head as PEFT does: `acemath registry publish DIR --adapter-of …` takes it."""
    directory.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name}.weight": value for name, value in sorted(values.items())}
    save_file(named, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "target_modules": _TARGETS,
        "bias": "none",
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(
        json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of an adapter folder.

    Raises:
        CheckpointError: when a file is missing.
    """
    if not (directory / WEIGHTS).is_file() or not (directory / CONFIG).is_file():
        raise CheckpointError(f"{directory} holds no adapter ({WEIGHTS} and {CONFIG})")
    return load_file(str(directory / WEIGHTS)), json.loads((directory / CONFIG).read_text("utf-8"))


def _plain(name: str) -> str:
    """`model.base_model.model.model.layers.0…lora_A.default.weight` → `model.layers.0…lora_A`."""
    tail = name.rpartition("base_model.model.")[2]
    return tail.replace(".lora_A.default.weight", ".lora_A").replace(".lora_B.default.weight", ".lora_B")
