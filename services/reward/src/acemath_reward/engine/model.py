"""The forward pass over a packed pass of cells, and what a pass leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from acemath_reward.engine.attention import Attention
from acemath_reward.engine.budget import Budget
from acemath_reward.engine.cells import GridCell, Track, cells_of
from acemath_reward.engine.compiled import CompiledLoops
from acemath_reward.engine.config import EngineConfig, read_config
from acemath_reward.engine.crew import crew_of
from acemath_reward.engine.device import Placement
from acemath_reward.engine.elementwise import Elementwise, TensorOperators
from acemath_reward.engine.head import LinearHead, MlpHead, RowNorm
from acemath_reward.engine.layer import DecoderLayer, LastLayer, Tile
from acemath_reward.engine.linear import prepacks
from acemath_reward.engine.live import GridSession
from acemath_reward.engine.packing import Asked, Packed, pack
from acemath_reward.engine.peak import peak
from acemath_reward.engine.tiling import Trial, find_tiling
from acemath_reward.engine.varlen import attention_of
from acemath_reward.engine.weights import load_tensors
from acemath_reward.ports import DEFAULT_LIVE_LIMITS, Cell, LiveLimits, PromptGroup, TokenIds

_Take = Callable[[str], Tensor]


class RewardEngine:
    """A one-label sequence classifier (`ports.RewardModel`), scored at the last token of each sequence.

    Args:
        config: shapes and constants.
        tensors: every tensor of the checkpoint, by transformers' names; emptied while they are placed, so that
            the checkpoint is not in memory twice.
        placement: device, number format and schedule.
        live: bytes that live sessions may hold.
    """

    def __init__(
        self,
        config: EngineConfig,
        tensors: dict[str, Tensor],
        placement: Placement,
        live: LiveLimits = DEFAULT_LIVE_LIMITS,
    ) -> None:
        self._config, self._placement, self._crew = config, placement, crew_of(placement.threads)

        def take(name: str, dtype: torch.dtype = placement.dtype) -> Tensor:
            return tensors.pop(name).to(placement.device, dtype, copy=True)

        with torch.inference_mode():
            self._embedding = take("model.embed_tokens.weight")
            self._attention, self._attend = attention_of(config, placement)
            between = elementwise_of(config, placement)
            self._layers = [
                DecoderLayer(_layer_tensors(tensors, index, take), config, placement, between)
                for index in range(config.layers - 1)
            ]
            last = config.layers - 1
            self._last = LastLayer(_layer_tensors(tensors, last, take), config, placement, between)
            self._tiling = find_tiling(placement, self._trials())
            one_layer = (self._layers[0] if self._layers else self._last).trials()
            self._peak = peak(one_layer, config.layers, placement, self._crew)
            norm = partial(_norm_row, between, take("model.norm.weight"))
            self._head = _head(config, norm, partial(take, dtype=torch.float32))
        self._budget = Budget(live, config.token_numbers * placement.dtype.itemsize)

    @property
    def max_tokens(self) -> int:
        """See the port, as for all that follows."""
        return self._config.max_tokens

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._config.vocab_size

    @property
    def cell_tokens(self) -> int:
        """Tokens of a whole cell."""
        return self._placement.cell_tokens

    @property
    def live_bytes(self) -> int:
        """Bytes that all live sessions hold now."""
        return self._budget.held

    @property
    def server(self) -> None:
        """This process computes."""
        return None

    def facts(self) -> Mapping[str, object]:
        """Architecture, format, device, threads, and what of the schedule is part of the numerics."""
        return {
            "engine": "torch",
            "architecture": self._config.architecture,
            "dtype": str(self._placement.dtype).removeprefix("torch."),
            "device": str(self._placement.device),
            "threads": self._placement.threads,
            "row_tile": self._tiling.tile,
            "last_tiles": list(self._tiling.sizes),
            "cell_tokens": self._placement.cell_tokens,
            "attention": self._attention,
            "prepacked": prepacks(self._placement),
            "peak_tokens_per_second": round(self._peak),
            "compiled": self._placement.compiled and self._placement.device.type == "cpu",
            "torch": torch.__version__,
        }

    def _trials(self) -> list[Trial]:
        """Every shape of product there is: layers but the last have the same."""
        return [*(self._layers[0].trials() if self._layers else ()), *self._last.trials()]

    def plan(self, group: PromptGroup) -> list[Cell]:
        """The cells of a whole group."""
        return list(cells_of(group, self._placement.cell_tokens))

    def open(self, prompt: TokenIds) -> GridSession:
        """A session for growing candidates."""
        return GridSession(prompt, self._placement.cell_tokens, self._config.max_tokens, self._budget.open())

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        """One float32 number for each candidate, in the groups' order."""
        cells = [cell for group in groups for cell in self.plan(group)]
        values = (value for value in self.forward(cells) if value is not None)
        return [[next(values) for _ in group.candidates] for group in groups]

    @torch.inference_mode()
    def forward(self, cells: Sequence[Cell]) -> list[float | None]:
        """Compute the cells in one packed pass."""
        given = [_grid_cell(cell) for cell in cells]
        scores: list[float | None] = [None] * len(given)
        batch = pack(given, self._tiling, trim=self._placement.trim)
        if batch is None:
            return scores
        kept = _Kept(batch, [given[index] for index in batch.cells], self._config, self._placement)
        for index, value in zip(batch.cells, self._compute(batch, kept), strict=True):
            scores[index] = value
        kept.commit()
        return scores

    def _compute(self, batch: Packed, kept: _Kept) -> list[float]:
        """The scores that the pass asks for, in the order of `batch.cells`; keys and values into `kept`."""
        config, places = self._config, batch.positions.to(self._placement.device)
        fresh = self._embedding.new_empty(len(places), 2, config.kv_heads, config.head_dim)
        attention = self._attend(batch.runs, len(places), fresh)
        x = self._decode(self._tiles(self._embedding[batch.ids.to(places.device)], places), fresh, attention, kept)
        del attention  # its buffers serve again for what is asked
        return self._ask(torch.cat(x), places, fresh, batch.asked) if batch.asked else []

    def _decode(self, tiles: list[Tile], fresh: Tensor, attention: Attention, kept: _Kept) -> list[Tensor]:
        """The residual stream before the last layer, tile by tile; `fresh` has that layer's keys and values then.

        A tile goes through the end of a layer and the beginning of the next at once: threads meet twice a layer.
        """
        layers, lengths = (*self._layers, self._last), [len(tile.rows) for tile in tiles]
        self._crew.each(lambda tile: layers[0].put(tile, fresh, attention), tiles)
        for index, (layer, following) in enumerate(pairwise(layers)):
            kept.store(index, fresh)
            seen = torch.split(attention(index), lengths)
            self._crew.each(partial(_step, tiles, seen, layer, following, fresh, attention), range(len(tiles)))
        kept.store(len(self._layers), fresh)
        return [tile.rows for tile in tiles]

    def _ask(self, x: Tensor, places: Tensor, fresh: Tensor, asked: Asked) -> list[float]:
        """The scores, by the part of the last layer that they need."""
        rows, out = asked.rows.to(places.device), asked.out.to(places.device)
        attention, last = self._attend(asked.runs, len(rows), fresh), self._last
        wanted = x[rows]
        self._crew.each(lambda tile: last.put_queries(tile, attention), self._tiles(wanted, places[rows]))
        attended = attention(len(self._layers))
        ends = zip(self._cut(wanted[out]), self._cut(attended[out]), strict=True)
        found = torch.cat([last.complete(rows, seen) for rows, seen in ends])
        scores: list[float] = torch.stack([self._head(found[i]) for i in asked.scored]).tolist()
        return scores

    def _tiles(self, rows: Tensor, places: Tensor) -> list[Tile]:
        parts = self._cut(rows)
        firsts = accumulate((len(part) for part in parts), initial=0)
        return [Tile(*one) for one in zip(firsts, parts, self._cut(places), strict=False)]

    def _cut(self, rows: Tensor) -> Sequence[Tensor]:
        return torch.split(rows, self._tiling.cut(len(rows)))


def _step(
    tiles: list[Tile],
    seen: Sequence[Tensor],
    layer: DecoderLayer,
    following: DecoderLayer,
    fresh: Tensor,
    attention: Attention,
    which: int,
) -> None:
    """A tile after `layer`, in its place, and what attention in the `following` one needs of it."""
    tile = tiles[which] = replace(tiles[which], rows=layer.complete(tiles[which].rows, seen[which]))
    following.put(tile, fresh, attention)


class _Kept:
    """The keys and values that outlive a pass: of live tracks that are not scored in it.

    Args:
        batch: the pass.
        ending: cells of the pass that are scored.
        config: shapes.
        placement: device and format.
    """

    def __init__(self, batch: Packed, ending: Sequence[GridCell], config: EngineConfig, placement: Placement) -> None:
        self._ended = [cell.track for cell in ending if cell.track.account is not None]
        ended = set(self._ended)
        self._stores: list[tuple[Track, slice, Tensor]] = []
        for run in batch.runs:
            if run.track.account is not None and run.track not in ended:
                own = run.rows[-1]
                shape = (config.layers, own.stop - own.start, 2, config.kv_heads, config.head_dim)
                store = torch.empty(shape, dtype=placement.dtype, device=placement.device)
                self._stores.append((run.track, own, store))

    def store(self, layer: int, fresh: Tensor) -> None:
        """Copy what is kept of a layer's `[rows of the pass, 2, kv_heads, head_dim]`."""
        for _, rows, store in self._stores:
            store[layer] = fresh[rows]

    def commit(self) -> None:
        """Add it to the tracks, and free those that have their score. The pass has succeeded; nothing can fail now."""
        for track, _, store in self._stores:
            if track.account is not None:
                track.account.add(track, store)
        for track in self._ended:
            if track.account is not None:
                track.account.free(track)


def _grid_cell(cell: Cell) -> GridCell:
    if not isinstance(cell, GridCell):
        raise ValueError(f"{type(cell).__name__} is not a cell of this engine")
    return cell


def _layer_tensors(tensors: Mapping[str, Tensor], index: int, take: _Take) -> dict[str, Tensor]:
    """A layer's tensors by their names inside the layer."""
    prefix = f"model.layers.{index}."
    return {name.removeprefix(prefix): take(name) for name in list(tensors) if name.startswith(prefix)}


def elementwise_of(config: EngineConfig, placement: Placement) -> Elementwise:
    """What computes between products on this device."""
    if placement.device.type == "cpu" and placement.compiled:
        return CompiledLoops(config, placement)
    return TensorOperators(config, placement)


def _norm_row(between: Elementwise, weight: Tensor, row: Tensor) -> Tensor:
    """The last norm of one row `[hidden]`."""
    return between.norm(row[None], weight)[0]


def _head(config: EngineConfig, norm: RowNorm, take: _Take) -> LinearHead | MlpHead:
    if config.head == "linear":
        return LinearHead(norm, take("score.weight"))
    names = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
    return MlpHead(norm, {name: take(name) for name in names})


def load_engine(directory: Path, placement: Placement, live: LiveLimits = DEFAULT_LIVE_LIMITS) -> RewardEngine:
    """The engine of the checkpoint in `directory`.

    Raises:
        UnsupportedCheckpoint: a configuration, name, shape or value that the engine does not serve.
    """
    config = read_config(directory)
    return RewardEngine(config, load_tensors(directory, config), placement, live)
