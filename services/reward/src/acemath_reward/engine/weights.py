"""Safetensors files to tensors: every expected name with its shape, nothing else, nothing twice, nothing not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from acemath_reward.engine.config import EngineConfig
from acemath_reward.ports import UnsupportedCheckpoint

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def expected_shapes(config: EngineConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint, as transformers names them."""
    hidden, wide = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        **_head_shapes(config),
    }
    for index in range(config.layers):
        layer = f"model.layers.{index}."
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}mlp.gate_proj.weight"] = (wide, hidden)
        shapes[f"{layer}mlp.up_proj.weight"] = (wide, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, wide)
        shapes.update(_attention_shapes(config, f"{layer}self_attn."))
    return shapes


def _head_shapes(config: EngineConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    if config.head == "linear":
        return {"score.weight": (1, hidden)}
    return {
        "score.0.weight": (hidden, hidden),
        "score.0.bias": (hidden,),
        "score.2.weight": (1, hidden),
        "score.2.bias": (1,),
    }


def _attention_shapes(config: EngineConfig, name: str) -> dict[str, tuple[int, ...]]:
    widths = {"q": config.heads * config.head_dim, "k": config.kv_heads * config.head_dim}
    widths["v"] = widths["k"]
    shapes: dict[str, tuple[int, ...]] = {f"{name}o_proj.weight": (config.hidden_size, widths["q"])}
    for letter, width in widths.items():
        shapes[f"{name}{letter}_proj.weight"] = (width, config.hidden_size)
        if config.qkv_bias:
            shapes[f"{name}{letter}_proj.bias"] = (width,)
    return shapes


def load_tensors(directory: Path, config: EngineConfig) -> dict[str, Tensor]:
    """All tensors of the checkpoint, in the number format they are stored in.

    Raises:
        UnsupportedCheckpoint: a name missing, unexpected or stored twice, a wrong shape or format, a value that is
            not finite, or a file that is not safetensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in _read(file):
            if config.head == "mlp" and name == "lm_head.weight":
                continue  # Qwen2.5-Math-RM stores the one of the language model that it was made of
            if name in tensors:
                raise UnsupportedCheckpoint(f"{file.name}: {name} is stored a second time")
            tensors[name] = tensor
    _check(tensors, expected_shapes(config))
    return tensors


def _read(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as archive:
            for name in archive.keys():  # noqa: SIM118 (not a mapping)
                yield name, archive.get_tensor(name)
    except SafetensorError as error:
        raise UnsupportedCheckpoint(f"{file.name} cannot be read: {error}") from error
    except OSError as error:  # of the disk, and so no word about the checkpoint
        raise OSError(error.errno, f"{file.name} cannot be read: {error.strerror}") from error


def _check(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or extra:
        raise UnsupportedCheckpoint(f"tensors missing: {_some(missing)}; not expected: {_some(extra)}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise UnsupportedCheckpoint(f"{name} has shape {tuple(tensor.shape)}, config.json makes it {shape}")
        if tensor.dtype not in _FLOATS:
            raise UnsupportedCheckpoint(f"{name} is stored as {tensor.dtype}; implemented: bfloat16, float16, float32")
        if not bool(torch.isfinite(tensor).all()):
            raise UnsupportedCheckpoint(f"{name} holds values that are not finite")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
