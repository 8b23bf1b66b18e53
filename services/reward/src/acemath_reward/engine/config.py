"""What of a checkpoint's `config.json` the engine implements; everything that would change the function is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from acemath_reward.ports import UnsupportedCheckpoint

ARCHITECTURES = {
    "LlamaForSequenceClassification": "llama",
    "Qwen2ForSequenceClassification": "qwen2",
    "Qwen2ForRewardModel": "qwen2",
}
_MLP_HEADS = frozenset({"Qwen2ForRewardModel"})  # one label by definition of the class, whatever id2label says

# Key -> the only values under which this engine computes what the checkpoint means; an absent key is fine.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "partial_rotary_factor": (1, 1.0, None),
}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Shapes and constants of a decoder with a one-label head.

    Attributes:
        architecture: the class named in `config.json`.
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads (grouped-query attention); divides `heads`.
        head_dim: width of a head.
        norm_eps: epsilon of every RMSNorm.
        rope_theta: base of the rotary embedding.
        max_tokens: `max_position_embeddings`.
        qkv_bias: whether the query, key and value maps have biases (Qwen2).
        head: `linear`, one map without bias; `mlp`, two maps with biases and a ReLU between (Qwen2.5-Math-RM).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_tokens: int
    qkv_bias: bool
    head: Literal["linear", "mlp"] = "linear"

    @property
    def token_numbers(self) -> int:
        """Numbers in the keys and values of one token, all layers; times the size of one gives bytes."""
        return self.layers * 2 * self.kv_heads * self.head_dim


def read_config(directory: Path) -> EngineConfig:
    """The configuration of the checkpoint in `directory`.

    Raises:
        UnsupportedCheckpoint: unreadable, another architecture, more than one label, or an option not implemented.
    """
    try:
        document = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedCheckpoint(f"config.json cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise UnsupportedCheckpoint("config.json is not a JSON object")
    return parse_config(document)


def parse_config(document: Mapping[str, Any]) -> EngineConfig:
    """The configuration in a `config.json` document. Raises as `read_config`."""
    architecture = _architecture(document)
    _refuse_options(document)
    heads, hidden = _whole(document, "num_attention_heads"), _whole(document, "hidden_size")
    config = EngineConfig(
        architecture=architecture,
        vocab_size=_whole(document, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_whole(document, "intermediate_size"),
        layers=_whole(document, "num_hidden_layers"),
        heads=heads,
        kv_heads=_whole(document, "num_key_value_heads", heads),
        head_dim=_whole(document, "head_dim", hidden // heads),
        norm_eps=float(document.get("rms_norm_eps", 1e-6)),
        rope_theta=_rope_theta(document),
        max_tokens=_whole(document, "max_position_embeddings"),
        qkv_bias=ARCHITECTURES[architecture] == "qwen2",
        head="mlp" if architecture in _MLP_HEADS else "linear",
    )
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise UnsupportedCheckpoint(
            f"{config.heads} query heads, {config.kv_heads} key heads and head width {config.head_dim} do not fit"
        )
    return config


def _architecture(document: Mapping[str, Any]) -> str:
    named = document.get("architectures")
    architecture = named[0] if isinstance(named, list) and len(named) == 1 else None
    if architecture not in ARCHITECTURES:
        raise UnsupportedCheckpoint(f"architectures is {named!r}; implemented: {', '.join(ARCHITECTURES)}")
    model_type = document.get("model_type")
    if model_type != ARCHITECTURES[architecture]:
        raise UnsupportedCheckpoint(f"model_type is {model_type!r}, which does not fit {architecture}")
    if architecture in _MLP_HEADS:
        return str(architecture)
    labels = document.get("id2label")
    count = len(labels) if isinstance(labels, dict) else document.get("num_labels", 2)  # transformers' default is 2
    if count != 1:
        raise UnsupportedCheckpoint(f"the classifier has {count} labels; a reward model has one (id2label)")
    return str(architecture)


def _refuse_options(document: Mapping[str, Any]) -> None:
    for key, allowed in _ONLY.items():
        if document.get(key, allowed[0]) not in allowed:
            raise UnsupportedCheckpoint(f"{key} is {document[key]!r}; this engine implements {allowed[0]!r} only")
    kinds = set(document.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UnsupportedCheckpoint(f"layer_types has {sorted(kinds)}; only full_attention is implemented")


def _rope_theta(document: Mapping[str, Any]) -> float:
    """The rotary base: `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
    parameters = document.get("rope_parameters") or {}
    scaling = document.get("rope_scaling") or {}
    for options in (parameters, scaling):
        kind = options.get("rope_type", options.get("type", "default"))
        if kind != "default":
            raise UnsupportedCheckpoint(f"rotary scaling {kind!r} is not implemented; only 'default' is")
        if options.get("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedCheckpoint("a partial rotary embedding is not implemented")
    theta = parameters.get("rope_theta", document.get("rope_theta", 10000.0))
    if not isinstance(theta, int | float) or theta <= 0:
        raise UnsupportedCheckpoint(f"rope_theta is {theta!r}; it must be a positive number")
    return float(theta)


def _whole(document: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = document.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedCheckpoint(f"{key} is {value!r}; it must be a whole number above 0")
    return value
