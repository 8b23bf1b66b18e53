"""Tiny checkpoints, written with the standard library."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from acemath_registry import PublishMetadata

Tensors = dict[str, tuple[str, list[int], bytes]]

VOCABULARY = 512
_ONES = b"\x80\x3f\x80\x3f"
_LAYER = "model.layers.0."
SMALL: Tensors = {
    "model.embed_tokens.weight": ("BF16", [VOCABULARY, 2], bytes(range(32)) * 64),
    **{
        f"{_LAYER}{name}_proj.weight": ("BF16", [2, 2], bytes(range(8)))
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    },
    f"{_LAYER}input_layernorm.weight": ("BF16", [2], _ONES),
    f"{_LAYER}post_attention_layernorm.weight": ("BF16", [2], _ONES),
    "model.norm.weight": ("BF16", [2], _ONES),
}
"""A Llama of one layer, whose head is the embedding."""
METADATA = PublishMetadata(step=7, licence="Apache-2.0")
CANARIES: dict[str, dict[str, Any]] = {
    "policy": {"cases": [{"token_ids": [1, 2], "logprobs": [-0.5]}], "dtype": "bfloat16"},
    "reward": {"cases": [{"token_ids": [1, 2], "score": 0.5}], "dtype": "bfloat16"},
}


def safetensors_bytes(tensors: Tensors) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def read_safetensors(path: Path) -> Tensors:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {name: (one["dtype"], one["shape"], body[slice(*one["data_offsets"])]) for name, one in header.items()}


def config_of(tensors: Tensors, kind: str) -> dict[str, Any]:
    """The config.json of a Llama of one head that has these tensors."""
    shapes = {name.removeprefix(_LAYER).removesuffix("_proj.weight"): shape for name, (_, shape, _) in tensors.items()}
    vocabulary, hidden = shapes["model.embed_tokens.weight"]
    labels = {} if kind == "policy" else {"id2label": {"0": "LABEL_0"}}
    return labels | {
        "architectures": ["LlamaForCausalLM" if kind == "policy" else "LlamaForSequenceClassification"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes["mlp.gate"][0],
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": shapes["self_attn.q"][0] if shapes["self_attn.q"][0] != hidden else None,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }


def with_head(tensors: Tensors) -> Tensors:
    """A reward model of these tensors, the others in their order."""
    hidden = tensors["model.norm.weight"][1][0]
    return {"score.weight": ("BF16", [1, hidden], bytes(range(2 * hidden)))} | tensors


def write_checkpoint(
    directory: Path, kind: str = "policy", tensors: Tensors = SMALL, *, mark: str = "", shards: bool = False
) -> Path:
    directory.mkdir(parents=True)
    if kind == "reward" and "score.weight" not in tensors:
        tensors = with_head(tensors)
    (directory / "config.json").write_text(json.dumps(config_of(tensors, kind) | {"mark": mark}))
    (directory / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 48}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    if not shards:
        (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return directory
    last = next(reversed(tensors))
    homes = {name: f"model-0000{1 + (name == last)}-of-00002.safetensors" for name in tensors}
    for shard in set(homes.values()):
        own = {name: value for name, value in tensors.items() if homes[name] == shard}
        (directory / shard).write_bytes(safetensors_bytes(own))
    index = {"metadata": {}, "weight_map": homes}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
