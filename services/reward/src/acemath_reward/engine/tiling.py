"""How the rows of a pass are cut into products: full tiles, and a last one that is no larger than it must be; or, for
several threads, tiles of which each thread gets its share.

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
"""Numbers of rows that are tried beside a full tile's: from `SMALLEST`, in steps of `STEP`."""
EACH = 60
"""Rows that a product costs beside its own: see the figures at `device.CPU_ROW_TILE`."""


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
        tile: rows of the largest.
        sizes: what others may have, rising; the largest is `tile`.
        threads: that share the tiles of a pass (`crew`).
    """

    tile: int
    sizes: tuple[int, ...]
    threads: int = 1

    def cut(self, rows: int) -> list[int]:
        """The tiles of `rows` rows, the last one with fillers up to the next size; none for no rows.

        All but the last are of one size: of those that give threads as many tiles each, or nearly, the one with which
        the busiest thread is done first.
        """
        plain = self._of(self.tile, rows)
        if self.threads == 1 or not plain:
            return plain
        most = -(-len(plain) // self.threads) * self.threads
        even = [self._of(self._at_least(-(-rows // count)), rows) for count in range(len(plain), most + 1)]
        return min([plain, *even], key=self._busiest)

    def _of(self, size: int, rows: int) -> list[int]:
        full, rest = divmod(rows, size)
        return [size] * full + ([self._at_least(rest)] if rest else [])

    def _at_least(self, rows: int) -> int:
        return next(size for size in self.sizes if size >= rows)

    def _busiest(self, tiles: list[int]) -> int:
        """What the thread with the most work costs, in rows, when they take turns."""
        return max(sum(EACH + size for size in tiles[k :: self.threads]) for k in range(self.threads))

    def filled(self, rows: int) -> int:
        """Rows with the fillers of the last tile."""
        return sum(self.cut(rows))


def find_tiling(placement: Placement, trials: Iterable[Trial]) -> Tiling:
    """The tiling with every size under which each trial gives each row the bits that it has in a full tile."""
    tile, tried = placement.row_tile, list(trials)
    sizes = list(range(SMALLEST, tile, STEP)) if placement.device.type == "cpu" else []
    for trial in tried:
        sizes = _same_bits(trial, tile, sizes, placement)
    return Tiling(tile, (*sizes, tile), placement.threads)


def _same_bits(trial: Trial, tile: int, sizes: list[int], placement: Placement) -> list[int]:
    """The sizes that pass, on random rows: were a sum taken in another order, some of thousands would show it."""
    if not sizes:
        return []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tile, trial.width, generator=generator).to(placement.device, placement.dtype)
    expected = trial.compute(x)
    return [size for size in sizes if torch.equal(trial.compute(x[:size]), expected[:size])]
