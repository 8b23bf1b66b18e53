"""The roofline: how many tokens a second the layers' own matrix products would take, and nothing else.

Given instead of scores, one number: tokens a second, the best over several numbers of rows. The same few weights come
again and again, so that they lie in the cache: no real pass reaches it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from acemath_reward.engine.config import EngineConfig, read_config
from acemath_reward.engine.device import Placement, place
from acemath_reward.engine.linear import TiledLinear
from bench.reward.groups import Group, Scores
from bench.reward.worker import Options

CPU_ROWS = (128, 256, 512)
CUDA_ROWS = (1024, 4096, 8192)
SECONDS = 0.15


class Peak:
    """The products of one layer.

    Args:
        checkpoint: whose shapes.
        device: torch device.
        threads: of the one team; as many workers of one thread are measured beside it.
    """

    def __init__(self, checkpoint: Path, device: str, threads: int) -> None:
        self._checkpoint, self._device, self._threads = checkpoint, device, threads
        self.facts: dict[str, Any] = {"rows": _rows(device), "threads": threads}
        self._pool = multiprocessing.get_context("spawn").Pool(threads) if device == "cpu" and threads > 1 else None

    def prepare(self, options: Options) -> None:
        """Nothing to do."""

    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """`[[tokens a second]]`: of the team, or with `{"kind": "workers"}` of all workers at the same time."""
        if options.get("kind") != "workers" or self._pool is None:
            return [[peak(self._checkpoint, self._device, self._threads)]]
        given = [(self._checkpoint, self._device, 1)] * self._threads
        return [[sum(self._pool.starmap(peak, given, chunksize=1))]]

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.terminate()


def peak(checkpoint: Path, device: str, threads: int) -> float:
    """Tokens a second of the products of all layers."""
    config, placement = read_config(checkpoint), place(device, "auto", threads=threads)
    if placement.device.type == "cpu":
        torch.set_num_threads(threads)  # the library's own team, as nothing else is measured here
    return max(_rate(config, replace(placement, row_tile=rows)) for rows in _rows(device))


def _rows(device: str) -> tuple[int, ...]:
    return CPU_ROWS if device == "cpu" else CUDA_ROWS


def _rate(config: EngineConfig, placement: Placement) -> float:
    width = (config.heads + 2 * config.kv_heads) * config.head_dim
    shapes = [
        (width, config.hidden_size),
        (config.hidden_size, config.heads * config.head_dim),
        (2 * config.intermediate_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
    ]
    return placement.row_tile / (config.layers * sum(_seconds(shape, placement) for shape in shapes))


@torch.inference_mode()
def _seconds(shape: tuple[int, int], placement: Placement) -> float:
    """Of one product: the mean over a stretch of time, the better of two stretches."""
    weight = torch.randn(shape).to(placement.device, placement.dtype)
    x = torch.randn(placement.row_tile, shape[1]).to(placement.device, placement.dtype)
    product = TiledLinear(weight, None, placement)
    return min(_stretch(lambda: product(x), placement.device) for _ in range(2))


def _stretch(work: Callable[[], object], device: torch.device) -> float:
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS:
        for _ in range(8):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 8
    return elapsed / count


def create(options: Options) -> Peak:
    """See `bench.reward.worker`."""
    return Peak(Path(options["checkpoint"]), options["device"], options["threads"])
