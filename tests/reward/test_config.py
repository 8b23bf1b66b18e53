"""What is not implemented is refused, never computed wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acemath_reward.engine.config import parse_config, read_config
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.ports import UnsupportedCheckpoint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForSequenceClassification"],
    "model_type": "llama",
    "id2label": {"0": "LABEL_0"},
    "vocab_size": 384,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 320,
    "hidden_act": "silu",
}


def test_defaults_are_those_of_transformers() -> None:
    config = parse_config(LLAMA)
    assert (config.kv_heads, config.head_dim, config.rope_theta, config.norm_eps) == (6, 16, 10000.0, 1e-6)
    assert not config.qkv_bias


def test_both_ways_to_write_the_rotary_base_are_read() -> None:
    assert parse_config({**LLAMA, "rope_theta": 5e5}).rope_theta == 5e5
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert parse_config({**LLAMA, **newer}).rope_theta == 1e6
    assert parse_config({**LLAMA, "rope_scaling": None}).rope_theta == 10000.0


def test_qwen2_has_biases() -> None:
    assert parse_config({**LLAMA, "architectures": ["Qwen2ForSequenceClassification"], "model_type": "qwen2"}).qkv_bias


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": []}, "architectures"),
        ({"architectures": "LlamaForSequenceClassification"}, "architectures"),
        ({"model_type": "mistral"}, "model_type"),
        ({"id2label": {"0": "a", "1": "b"}}, "2 labels"),
        ({"id2label": None}, "2 labels"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "llama3"),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, "partial"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"num_key_value_heads": 4}, "do not fit"),
        ({"head_dim": 15}, "do not fit"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": "384"}, "vocab_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
    ],
)
def test_what_is_not_implemented_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=said):
        parse_config({**LLAMA, **changes})


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnsupportedCheckpoint, match=r"config\.json"):
        read_config(tmp_path)


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"config\.json"):
        read_config(tmp_path)


def damaged(llama: Path, directory: Path, name: str, tensor: torch.Tensor | None, *, more: bool = False) -> Path:
    (directory / "config.json").write_text((llama / "config.json").read_text())
    tensors = load_file(llama / "model.safetensors")
    if more and tensor is not None:
        save_file({name: tensor}, directory / "other.safetensors")
    elif tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("name", "tensor", "more", "said"),
    [
        ("score.weight", None, False, r"missing: score\.weight"),
        ("lm_head.weight", torch.zeros(384, 96), False, r"not expected: lm_head\.weight"),
        ("score.weight", torch.zeros(2, 96), False, "shape"),
        ("score.weight", torch.zeros(1, 96, dtype=torch.float64), False, "float64"),
        ("model.norm.weight", torch.full((96,), float("nan")), False, "not finite"),
        ("score.weight", torch.zeros(1, 96), True, "second time"),
    ],
)
def test_a_checkpoint_with_other_tensors_is_refused(
    llama: Path, tmp_path: Path, name: str, tensor: torch.Tensor | None, more: bool, said: str
) -> None:
    directory = damaged(llama, tmp_path, name, tensor, more=more)
    with pytest.raises(UnsupportedCheckpoint, match=said):
        load_engine(directory, place("cpu", "float32", threads=1))


def test_a_truncated_file_is_refused(llama: Path, tmp_path: Path) -> None:
    directory = damaged(llama, tmp_path, "score.weight", torch.zeros(1, 96))
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnsupportedCheckpoint, match="cannot be read"):
        load_engine(directory, place("cpu", "float32", threads=1))


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("acemath_reward.engine.device.has_bfloat16", lambda device: False)
    assert place("cpu", "auto", threads=1).dtype is torch.float32
    assert "no bfloat16 arithmetic" in caplog.text
    assert place("cpu", "bfloat16", threads=1).dtype is torch.bfloat16


def test_config_json_of_a_real_export_is_read(llama: Path) -> None:
    assert parse_config(json.loads((llama / "config.json").read_text())).kv_heads == 2
