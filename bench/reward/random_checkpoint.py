"""A one-label Qwen2 checkpoint with random weights, for speed only: a rank of its scores means nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPES: dict[str, dict[str, int]] = {
    "qwen2-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 4096,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
        "max_position_embeddings": 4096,
    },
}
DEVIATION = 0.02
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def make(shape: str, tokenizer_of: Path, directory: Path, seed: int = 0) -> None:
    """Write config, tokenizer and weights, a shard for each layer, so that one layer is in memory at a time.

    Args:
        shape: one of `SHAPES`.
        tokenizer_of: a checkpoint whose tokenizer is taken; the sets' ids are its own.
        directory: where to; made.
        seed: of the weights.
    """
    sizes = SHAPES[shape]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(_config(sizes, tokenizer_of), indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if (tokenizer_of / name).exists():
            shutil.copy(tokenizer_of / name, directory / name)
    _write_weights(sizes, directory, torch.Generator().manual_seed(seed))


def _config(sizes: dict[str, int], tokenizer_of: Path) -> dict[str, Any]:
    known = json.loads((tokenizer_of / "config.json").read_text())
    ids = {name: known.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "architectures": ["Qwen2ForSequenceClassification"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        **sizes,
        **ids,
    }


def _write_weights(sizes: dict[str, int], directory: Path, draw: torch.Generator) -> None:
    where: dict[str, str] = {}
    total, shards = 0, sizes["num_hidden_layers"] + 1
    for index, tensors in enumerate(_shards(sizes, draw), 1):
        name = f"model-{index:05d}-of-{shards:05d}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=1) + "\n")


def _shards(sizes: dict[str, int], draw: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """The layers one by one, then everything else."""

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=draw) * DEVIATION).to(torch.bfloat16)

    hidden = sizes["hidden_size"]
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield {prefix + name: normal(*shape) if "norm" not in name else _ones(hidden) for name, shape in _layer(sizes)}
    yield {
        "model.embed_tokens.weight": normal(sizes["vocab_size"], hidden),
        "model.norm.weight": _ones(hidden),
        "score.weight": normal(1, hidden),
    }


def _ones(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bfloat16)


def _layer(sizes: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    hidden, wide = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    found: list[tuple[str, tuple[int, ...]]] = [
        ("input_layernorm.weight", (hidden,)),
        ("post_attention_layernorm.weight", (hidden,)),
        ("mlp.gate_proj.weight", (wide, hidden)),
        ("mlp.up_proj.weight", (wide, hidden)),
        ("mlp.down_proj.weight", (hidden, wide)),
        ("self_attn.o_proj.weight", (hidden, hidden)),
    ]
    for letter, width in (("q", hidden), ("k", keys), ("v", keys)):
        found += [(f"self_attn.{letter}_proj.weight", (width, hidden)), (f"self_attn.{letter}_proj.bias", (width,))]
    return found
