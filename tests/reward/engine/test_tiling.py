"""The last tile of a pass has no more fillers than the library's own bits allow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reward.engine.drawing import OWN, PROMPTS
from torch import Tensor

from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.engine.tiling import EACH, SMALLEST, STEP, Tiling, Trial, find_tiling
from acemath_reward.ports import PromptGroup

SIZES = tuple(range(SMALLEST, 256, STEP))


@given(st.integers(0, 3000), st.sets(st.sampled_from(SIZES)))
def test_tiles_hold_all_rows_and_no_whole_size_more(rows: int, smaller: set[int]) -> None:
    tiling = Tiling(256, (*sorted(smaller), 256))
    tiles = tiling.cut(rows)
    assert sum(tiles) == tiling.filled(rows) >= rows
    assert set(tiles[:-1]) <= {256} and set(tiles[-1:]) <= set(tiling.sizes)
    assert not tiles or not [size for size in tiling.sizes if size < tiles[-1] and sum(tiles[:-1]) + size >= rows]


@given(st.integers(0, 3000), st.sets(st.sampled_from(SIZES)), st.integers(2, 6))
def test_threads_get_tiles_of_one_size_and_none_waits_longer(rows: int, smaller: set[int], threads: int) -> None:
    sizes = (*sorted(smaller), 256)
    tiling, alone = Tiling(256, sizes, threads), Tiling(256, sizes)
    tiles = tiling.cut(rows)
    assert sum(tiles) == tiling.filled(rows) >= rows > sum(tiles[:-1]) or not rows
    assert len(set(tiles[:-1])) <= 1 and set(tiles) <= set(sizes) and tiles == sorted(tiles, reverse=True)
    assert busiest(tiles, threads) <= busiest(alone.cut(rows), threads)


def test_two_threads_share_what_would_be_one_tile() -> None:
    sizes = (*SIZES, 256)
    assert Tiling(256, sizes).cut(300) == [256, 64]
    assert Tiling(256, sizes, threads=2).cut(300) == [160, 160]
    assert Tiling(256, sizes, threads=2).cut(60) == [64], "a product of few rows costs nearly as much as two"
    assert Tiling(256, (256,), threads=2).cut(300) == [256, 256], "where sizes do not agree there is only one"


def busiest(tiles: list[int], threads: int) -> int:
    return max((sum(EACH + size for size in tiles[k::threads]) for k in range(threads)), default=0)


def test_a_size_under_which_one_product_differs_is_not_used() -> None:
    def differs_at_96(x: Tensor) -> Tensor:
        return x + (1e-3 if len(x) == 96 else 0)

    placement = place("cpu", "float32", threads=1)
    same, other = Trial(8, lambda x: x * 2), Trial(16, differs_at_96)
    assert find_tiling(placement, [same]).sizes == (*SIZES, 256)
    assert find_tiling(placement, [same, other]).sizes == (*(size for size in SIZES if size != 96), 256)


def test_a_tile_of_few_rows_is_the_only_one() -> None:
    assert find_tiling(place("cpu", "float32", threads=1, row_tile=16), [Trial(4, lambda x: x)]) == Tiling(16, (16,))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_scores_are_those_of_full_tiles(kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(kind)
    placement = place("cpu", dtype, threads=1, cell_tokens=16)  # type: ignore[arg-type]
    found, full = load_engine(directory, placement), load_engine(directory, placement)
    full._tiling = Tiling(placement.row_tile, (placement.row_tile,))
    for count in range(1, len(OWN) + 1):
        groups = [PromptGroup(PROMPTS[4], OWN[:count])]
        assert found.score(groups) == full.score(groups)


def test_the_sizes_in_use_are_told(llama: Path) -> None:
    engine = load_engine(llama, place("cpu", "float32", threads=1))
    sizes = engine.facts()["last_tiles"]
    assert isinstance(sizes, list) and sizes[-1] == engine.facts()["row_tile"] == 256
    assert torch.get_num_threads() == 1
