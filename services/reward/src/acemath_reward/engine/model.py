"""The forward pass over a packed batch, and the head that turns a last row into a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from acemath_reward.engine.config import EngineConfig, read_config
from acemath_reward.engine.device import Placement
from acemath_reward.engine.layers import RMSNorm, RotaryTable, TiledLinear, attend, rotate
from acemath_reward.engine.packing import PackedBatch, pack
from acemath_reward.engine.weights import load_tensors
from acemath_reward.ports import PromptGroup


class DecoderLayer:
    """One pre-norm decoder layer with grouped-query attention and a gated MLP; q, k, v and gate, up are fused.

    Args:
        tensors: the layer's tensors, names without the `model.layers.<i>.` before them.
        config: shapes.
        placement: device, format and tile.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: EngineConfig, placement: Placement) -> None:
        tile = placement.row_tile
        biases = [tensors[f"self_attn.{letter}_proj.bias"] for letter in "qkv"] if config.qkv_bias else []
        self._qkv = TiledLinear(
            torch.cat([tensors[f"self_attn.{letter}_proj.weight"] for letter in "qkv"]),
            torch.cat(biases) if biases else None,
            tile,
        )
        self._out = TiledLinear(tensors["self_attn.o_proj.weight"], None, tile)
        gate_up = torch.cat((tensors["mlp.gate_proj.weight"], tensors["mlp.up_proj.weight"]))
        self._gate_up = TiledLinear(gate_up, None, tile)
        self._down = TiledLinear(tensors["mlp.down_proj.weight"], None, tile)
        self._attention_norm = RMSNorm(tensors["input_layernorm.weight"], config.norm_eps)
        self._mlp_norm = RMSNorm(tensors["post_attention_layernorm.weight"], config.norm_eps)
        self._borders = (config.heads, config.heads + config.kv_heads)
        self._head_dim = config.head_dim

    def __call__(self, x: Tensor, batch: PackedBatch, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """The residual stream after this layer, `[rows, hidden]`."""
        x = x + self._attention(self._attention_norm(x), batch, rotary)
        gate, up = self._gate_up(self._mlp_norm(x)).chunk(2, dim=-1)
        return x + self._down(torch.nn.functional.silu(gate) * up)

    def _attention(self, x: Tensor, batch: PackedBatch, rotary: tuple[Tensor, Tensor]) -> Tensor:
        heads = self._qkv(x).view(x.shape[0], -1, self._head_dim)
        query, key, value = heads.tensor_split(self._borders, dim=1)
        attended = attend(rotate(query, *rotary), rotate(key, *rotary), value, batch.segments)
        return self._out(attended)


class RewardEngine:
    """A one-label sequence classifier (`RewardModel`), scored at the last token of each sequence.

    Args:
        config: shapes and constants.
        tensors: every tensor of the checkpoint, by transformers' names; emptied while they are placed, so that
            the checkpoint is not in memory twice.
        placement: device, number format and tile.
    """

    def __init__(self, config: EngineConfig, tensors: dict[str, Tensor], placement: Placement) -> None:
        self._config, self._placement = config, placement

        def take(name: str) -> Tensor:
            return tensors.pop(name).to(placement.device, placement.dtype, copy=True)

        with torch.inference_mode():
            self._embedding = take("model.embed_tokens.weight")
            self._layers = [
                DecoderLayer({short: take(name) for short, name in _names_of(tensors, index)}, config, placement)
                for index in range(config.layers)
            ]
            self._norm = RMSNorm(take("model.norm.weight"), config.norm_eps)
            # The head keeps the precision it is stored in: bfloat16 scores around 6 come in steps of 0.03.
            self._head = tensors.pop("score.weight")[0].to(placement.device, torch.float32, copy=True)
            self._rotary = RotaryTable(
                config.head_dim, config.rope_theta, config.max_tokens, placement.dtype, placement.device
            )

    @property
    def max_tokens(self) -> int:
        """Prompt and candidate together may have so many tokens."""
        return self._config.max_tokens

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._config.vocab_size

    def facts(self) -> Mapping[str, object]:
        """Architecture, format, device, threads and tile."""
        return {
            "architecture": self._config.architecture,
            "dtype": str(self._placement.dtype).removeprefix("torch."),
            "device": str(self._placement.device),
            "threads": torch.get_num_threads(),
            "row_tile": self._placement.row_tile,
            "torch": torch.__version__,
        }

    @torch.inference_mode()
    def score(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        """One float32 number for each candidate, in the groups' order.

        A number may be NaN or infinite when the checkpoint overflows; the caller decides what that means.
        """
        batch = pack(groups, self._placement)
        x = self._embedding[batch.ids]
        rotary = self._rotary.rows(batch.positions)
        for layer in self._layers:
            x = layer(x, batch, rotary)
        scores = torch.stack([self._score_row(x[row]) for row in batch.last_rows]).tolist()
        values = iter(scores)
        return [[next(values) for _ in group.candidates] for group in groups]

    def _score_row(self, row: Tensor) -> Tensor:
        # One row at a time: a matrix product over all of them would change bits with their number.
        return (self._norm(row).float() * self._head).sum()


def _names_of(tensors: Mapping[str, Tensor], index: int) -> list[tuple[str, str]]:
    """(name inside the layer, whole name) of every tensor of a layer."""
    prefix = f"model.layers.{index}."
    return [(name.removeprefix(prefix), name) for name in tensors if name.startswith(prefix)]


def load_engine(directory: Path, placement: Placement) -> RewardEngine:
    """The engine of the checkpoint in `directory`.

    Raises:
        UnsupportedCheckpoint: a configuration, name, shape or value that the engine does not serve.
    """
    config = read_config(directory)
    return RewardEngine(config, load_tensors(directory, config), placement)
