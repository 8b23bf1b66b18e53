"""A tiny base and adapters on it, written with the standard library."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.tiny import METADATA, VOCABULARY, Tensors, safetensors_bytes, write_checkpoint

from acemath_registry import ModelRef, Registry

RANK, ALPHA = 2, 3
LAYERS = {"model.layers.0.self_attn.q_proj": (2, 4), "model.layers.0.mlp.down_proj": (4, 5)}
"""Layer that is adapted → rows and columns."""
OTHERS = {
    "self_attn.k_proj": [2, 4], "self_attn.v_proj": [2, 4], "self_attn.o_proj": [4, 2], "mlp.gate_proj": [5, 4],
    "mlp.up_proj": [5, 4], "input_layernorm": [4], "post_attention_layernorm": [4],
}  # fmt: skip

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": ["q_proj", "down_proj"],
    "bias": "none",
    "lora_dropout": 0.1,
    "base_model_name_or_path": "anything",
    "use_dora": False,
    "rank_pattern": {},
    "megatron_core": "megatron.core",
}


def bf16(*values: float) -> bytes:
    """Numbers that bfloat16 holds exactly."""
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def f32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def base_tensors() -> Tensors:
    tensors: Tensors = {
        "model.embed_tokens.weight": ("BF16", [VOCABULARY, 4], bf16(*range(16)) * (VOCABULARY // 4)),
        "model.norm.weight": ("BF16", [4], bf16(1, 1, 1, 1)),
    }
    for name, shape in OTHERS.items():
        tensors[f"model.layers.0.{name}.weight"] = ("BF16", shape, bf16(*range(math.prod(shape))))
    for layer, (rows, columns) in LAYERS.items():
        values = [(7 * i % 11 - 5) / 8 for i in range(rows * columns)]
        tensors[f"{layer}.weight"] = ("BF16", [rows, columns], bf16(*values))
    return tensors


def adapter_tensors() -> Tensors:
    tensors: Tensors = {}
    for number, (layer, (rows, columns)) in enumerate(LAYERS.items()):
        down = [0.1 * (i + number) - 0.3 for i in range(RANK * columns)]
        up = [0.2 * (i - number) - 0.5 for i in range(rows * RANK)]
        tensors[f"base_model.model.{layer}.lora_A.weight"] = ("F32", [RANK, columns], f32(*down))
        tensors[f"base_model.model.{layer}.lora_B.weight"] = ("F32", [rows, RANK], f32(*up))
    return tensors


def write_adapter(directory: Path, change: Callable[[dict[str, Any], Tensors], object] | None = None) -> Path:
    """What PEFT saves; `change` may spoil config and tensors before they are written."""
    config, tensors = json.loads(json.dumps(CONFIG)), adapter_tensors()
    if change is not None:
        change(config, tensors)
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    (directory / "README.md").write_text("an adapter")
    return directory


def publish_base(registry: Registry, directory: Path, **options: Any) -> ModelRef:
    source = write_checkpoint(directory, "policy", base_tensors(), **options)
    return registry.publish(source, name="base", kind="policy", metadata=METADATA)


def publish_on(registry: Registry, source: Path, base: ModelRef, **options: Any) -> ModelRef:
    return registry.publish(source, name="pol", kind="policy", metadata=METADATA, adapter_of=base, **options)


def exact(weight: list[float], up: list[float], down: list[float], columns: int, scaling: float) -> list[float]:
    """The merge, a number at a time, by Python's own float64; row after row."""
    rank, merged = len(down) // columns, []
    for at, value in enumerate(weight):
        row, column = divmod(at, columns)
        total = 0.0
        for k in range(rank):
            total += up[row * rank + k] * down[k * columns + column]
        merged.append(total * scaling + value)
    return merged
