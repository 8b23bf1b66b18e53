"""How the rows of a pass are cut into products: full tiles, and a last one that is no larger than it must be.

A library chooses its kernel, and with it the order of additions, by the shape of a product, so products of one number
of rows are safe (`linear.TiledLinear`) but leave up to a tile of fillers in every pass. Where products of fewer rows
give the same bits, the last tile may be one of those. On AMX in bfloat16, with one thread, they do from 48 rows on;
with two threads they do not. That is a fact about a library on a machine, so it is not assumed: each shape of product
is tried at load, and a number of rows under which one of them differs is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from acemath_reward.engine.device import Placement

STEP = 32
SMALLEST = 64
"""Numbers of rows that are tried for the last tile: from `SMALLEST`, in steps of `STEP`."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A product to be tried.

    Attributes:
        width: of its rows.
        compute: `[rows, width]` to `[rows, anything]`.
    """

    width: int
    compute: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of tiles.

    Attributes:
        tile: rows of all tiles but the last.
        sizes: what the last may have, rising; the largest is `tile`.
    """

    tile: int
    sizes: tuple[int, ...]

    def cut(self, rows: int) -> list[int]:
        """The tiles of `rows` rows, the last one with fillers up to the next size; none for no rows."""
        full, rest = divmod(rows, self.tile)
        last = [next(size for size in self.sizes if size >= rest)] if rest else []
        return [self.tile] * full + last

    def filled(self, rows: int) -> int:
        """Rows with the fillers of the last tile."""
        return sum(self.cut(rows))


def find_tiling(placement: Placement, trials: Iterable[Trial]) -> Tiling:
    """The tiling with every size under which each trial gives each row the bits that it has in a full tile."""
    tile, tried = placement.row_tile, list(trials)
    sizes = list(range(SMALLEST, tile, STEP)) if placement.device.type == "cpu" else []
    for trial in tried:
        sizes = _same_bits(trial, tile, sizes, placement)
    return Tiling(tile, (*sizes, tile))


def _same_bits(trial: Trial, tile: int, sizes: list[int], placement: Placement) -> list[int]:
    """The sizes that pass, on random rows: were a sum taken in another order, some of thousands would show it."""
    if not sizes:
        return []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tile, trial.width, generator=generator).to(placement.device, placement.dtype)
    expected = trial.compute(x)
    return [size for size in sizes if torch.equal(trial.compute(x[:size]), expected[:size])]
