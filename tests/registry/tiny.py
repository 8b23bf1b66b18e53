"""Tiny checkpoints, written with the standard library."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from acemath_registry import PublishMetadata

Tensors = dict[str, tuple[str, list[int], bytes]]

SMALL: Tensors = {
    "model.embed_tokens.weight": ("BF16", [8, 2], bytes(range(32))),
    "model.norm.weight": ("BF16", [2], b"\x80\x3f\x80\x3f"),
}
METADATA = PublishMetadata(step=7, licence="Apache-2.0")


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


def write_checkpoint(
    directory: Path, kind: str = "policy", tensors: Tensors = SMALL, *, mark: str = "", shards: bool = False
) -> Path:
    directory.mkdir(parents=True)
    head = "ForCausalLM" if kind == "policy" else "ForSequenceClassification"
    config = {"architectures": [f"Llama{head}"], "vocab_size": 8, "max_position_embeddings": 64, "mark": mark}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text('{"model": {}}')
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 48}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    if not shards:
        (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return directory
    names = [f"model-{i:05d}-of-{len(tensors):05d}.safetensors" for i in range(1, len(tensors) + 1)]
    for name, (tensor, value) in zip(names, tensors.items(), strict=True):
        (directory / name).write_bytes(safetensors_bytes({tensor: value}))
    index = {"metadata": {}, "weight_map": dict(zip(tensors, names, strict=True))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
