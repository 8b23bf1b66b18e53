"""What matrix products alone would allow."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from reward.engine.drawing import engine_of

from acemath_reward.engine.crew import crew_of
from acemath_reward.engine.device import place
from acemath_reward.engine.peak import PIECES, ROUNDS, peak
from acemath_reward.engine.tiling import Trial

SECONDS = 0.002


@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_the_time_of_whole_tiles_through_all_layers(threads: int) -> None:
    shapes: list[tuple[int, ...]] = []

    def product(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        time.sleep(SECONDS)
        return x

    placement = place("cpu", "float32", threads=threads, row_tile=16)
    found = peak([Trial(4, product), Trial(8, product)], 3, placement, crew_of(threads))
    assert 0 < found <= threads * 16 / (2 * 3 * SECONDS)
    assert shapes.count((16, 4)) == shapes.count((16, 8)) == 1 + ROUNDS * PIECES * threads


def test_an_engine_tells_it(llama: Path) -> None:
    told = engine_of(llama, "float32").facts()["peak_tokens_per_second"]
    assert isinstance(told, int) and told > 0
