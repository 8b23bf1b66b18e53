"""How many tokens a second this device could do if there were nothing but a model's matrix products.

Beside it, `acemath_reward_batch_tokens` says how near the engine comes. No pass reaches it: attention, norms and what
is between products are left out, and the weights of one layer stay in the cache here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from acemath_reward.engine.crew import Crew
from acemath_reward.engine.device import Placement
from acemath_reward.engine.tiling import Trial

ROUNDS = 3
PIECES = 4
"""Full tiles for each thread in a round; the best round counts: others may compute beside it while a version loads."""


@torch.inference_mode()
def peak(trials: Sequence[Trial], layers: int, placement: Placement, crew: Crew) -> float:
    """Tokens a second of the products of all layers, whole tiles, every thread at work.

    Args:
        trials: the products of one layer.
        layers: how many there are.
        placement: device, format, rows of a tile.
        crew: shares the tiles.
    """
    empty = torch.zeros(placement.row_tile, 0, dtype=placement.dtype, device=placement.device)
    inputs = [empty.new_zeros(placement.row_tile, trial.width) for trial in trials]

    def one_layer(_: int) -> None:
        for trial, x in zip(trials, inputs, strict=True):
            trial.compute(x)

    tiles = PIECES * crew.threads
    one_layer(0)
    seconds = min(_seconds(one_layer, tiles, placement, crew) for _ in range(ROUNDS))
    return tiles * placement.row_tile / (seconds * layers)


def _seconds(one_layer: Callable[[int], None], tiles: int, placement: Placement, crew: Crew) -> float:
    _finish(placement)
    started = time.perf_counter()
    crew.each(one_layer, range(tiles))
    _finish(placement)
    return time.perf_counter() - started


def _finish(placement: Placement) -> None:
    if placement.device.type == "cuda":
        torch.cuda.synchronize(placement.device)
