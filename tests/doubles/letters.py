"""Tiny releases that cannot be mistaken for one another: vLLM's double writes one letter, the real engine scores it."""

from __future__ import annotations

import itertools
import json
import random
import string
import struct
from pathlib import Path

from registry.tiny import Tensors, write_checkpoint

from bench.swaps.publishing import Prepared
from bench.swaps.scores import scores_of
from doubles.small_release import _with_bytes_as_tokens

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 258,
}  # fmt: skip


class Letters:
    """Writes the next release's checkpoints, as `bench.swaps` does for the real stack.

    Args:
        max_tokens: that a candidate will have.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens, self._numbers = max_tokens, itertools.count(1)

    def prepare(self, folder: Path) -> Prepared:
        """Below an empty folder."""
        number = next(self._numbers)
        letter = string.ascii_letters[number % 52]
        policy = write_checkpoint(folder / "policy", "policy", mark=letter)
        _with_bytes_as_tokens(policy)
        _configure(policy, {"recites": [letter * self._max_tokens]})
        reward = write_checkpoint(folder / "reward", "reward", _weights(random.Random(number)))
        _with_bytes_as_tokens(reward)
        _configure(reward, {"model_type": "llama", "num_labels": 1, "id2label": {"0": "LABEL_0"}, **SHAPE})
        return Prepared(number, policy, reward, letter, scores_of(reward, letter * self._max_tokens))


def _configure(checkpoint: Path, more: dict[str, object]) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 4096} | more))


def _weights(draw: random.Random) -> Tensors:
    """A random Llama with one label, in bfloat16."""
    wide, inner, half = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["hidden_size"] // 2
    layer = {
        "self_attn.q_proj": [wide, wide], "self_attn.k_proj": [half, wide], "self_attn.v_proj": [half, wide],
        "self_attn.o_proj": [wide, wide], "mlp.gate_proj": [inner, wide], "mlp.up_proj": [inner, wide],
        "mlp.down_proj": [wide, inner], "input_layernorm": [wide], "post_attention_layernorm": [wide],
    }  # fmt: skip
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": [SHAPE["vocab_size"], wide], "model.norm.weight": [wide]}
    shapes["score.weight"] = [1, wide]
    return {name: ("BF16", shape, _random(draw, shape)) for name, shape in shapes.items()}


def _random(draw: random.Random, shape: list[int]) -> bytes:
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return b"".join(struct.pack("<f", draw.gauss(0.0, 0.3))[2:] for _ in range(count))
