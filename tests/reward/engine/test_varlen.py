"""Attention of all cells in one call: what it hands to the kernel, and which kernels are refused.

The kernel itself runs on a GPU. Here a loop over sequences stands for it; the last test asks the real one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reward.engine.drawing import CELL, OWN, PROMPTS, engine_of, step
from torch import Tensor

from acemath_reward.engine import varlen
from acemath_reward.engine.attention import CellMask
from acemath_reward.engine.config import EngineConfig, read_config
from acemath_reward.engine.device import Placement, place
from acemath_reward.engine.model import RewardEngine, load_engine
from acemath_reward.engine.varlen import Kernel, attention_of, find_kernel, flash, is_right
from acemath_reward.ports import PromptGroup


def looped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    max_q: int,
    max_k: int,
    *,
    diagonal: int = 0,
) -> Tensor:
    """What the kernel is to give: each sequence apart, causal, its last query seeing all of its keys."""
    assert queries.dtype == keys.dtype == torch.int32 and len(queries) == len(keys)
    assert (int(queries[-1]), int(keys[-1])) == (len(query), len(key)) == (len(query), len(value))
    assert (max_q, max_k) == (int(queries.diff().max()), int(keys.diff().max()))
    found = torch.empty_like(query)
    edges = zip(queries.tolist(), queries.tolist()[1:], keys.tolist(), keys.tolist()[1:], strict=False)
    for first, last, begin, end in edges:
        seen = torch.ones(last - first, end - begin, dtype=torch.bool).tril((end - begin) - (last - first) + diagonal)
        heads = (part.transpose(0, 1)[None] for part in (query[first:last], key[begin:end], value[begin:end]))
        found[first:last] = F.scaled_dot_product_attention(*heads, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)
    return found


def rounds_elsewhere(query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, *most: int) -> Tensor:
    """In float32, rounded once at the end: what another kernel may do."""
    wide = (part.float() for part in (query, key, value))
    return looped(*wide, queries, keys, *most).to(query.dtype)


def upper_left(query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, *most: int) -> Tensor:
    """Aligned at each sequence's beginning, as torch's `is_causal` is."""
    longer = int((keys.diff() - queries.diff()).max())
    return looped(query, key, value, queries, keys, *most, diagonal=-longer).nan_to_num()


def sees_the_next(query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, *most: int) -> Tensor:
    return looped(query, key, value, queries, keys, *most, diagonal=1)


def depends_on_mates(query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, *most: int) -> Tensor:
    """Near, and of other bits when more sequences are computed beside it."""
    found = looped(query, key, value, queries, keys, *most)
    return (found.float() * (1 + len(queries) * 2.0**-9)).to(found.dtype)


@pytest.fixture(params=["llama", "qwen2"])
def kind(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def small(directory: Path) -> tuple[EngineConfig, Placement, CellMask]:
    config, placement = read_config(directory), place("cpu", "bfloat16", threads=1, cell_tokens=CELL)
    return config, placement, CellMask(config.max_tokens, config.heads // config.kv_heads, placement)


@pytest.mark.parametrize("kernel", [looped, rounds_elsewhere])
def test_a_kernel_that_gives_the_same_but_for_rounding_is_right(kind: Path, kernel: Kernel) -> None:
    assert is_right(kernel, *small(kind))


@pytest.mark.parametrize("kernel", [upper_left, sees_the_next, depends_on_mates])
def test_a_kernel_that_gives_something_else_is_not(kind: Path, kernel: Kernel) -> None:
    assert not is_right(kernel, *small(kind))


def test_a_cpu_computes_cell_by_cell(kind: Path) -> None:
    config, placement, mask = small(kind)
    assert find_kernel(config, placement, mask) is None and attention_of(config, placement)[0] == "cells"
    assert engine_of(kind).facts()["attention"] == "cells"


def test_a_device_without_the_kernel_computes_cell_by_cell(
    kind: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_here(*_: object) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")

    config, placement, mask = small(kind)
    monkeypatch.setattr(varlen, "is_right", none_here)
    on_gpu = Placement(torch.device("cuda"), torch.bfloat16, placement.row_tile)
    assert find_kernel(config, on_gpu, mask) is None
    assert "no kernel image" in caplog.text and "cell by cell" in caplog.text


@pytest.fixture
def one_call(kind: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RewardEngine]:
    """An engine that computes attention in one call."""
    monkeypatch.setattr(varlen, "find_kernel", lambda *_: looped)

    def made(dtype: str) -> RewardEngine:
        return load_engine(kind, place("cpu", dtype, threads=1, cell_tokens=CELL, compiled=False))  # type: ignore[arg-type]

    return made


def test_scores_are_those_of_cell_by_cell(kind: Path, one_call: Callable[[str], RewardEngine]) -> None:
    groups = [PromptGroup(prompt, OWN) for prompt in PROMPTS]
    engine = one_call("float32")
    assert engine.facts()["attention"] == "varlen"
    for found, expected in zip(
        engine.score(groups), engine_of(kind, "float32", compiled=False).score(groups), strict=True
    ):
        assert found == pytest.approx(expected, abs=2e-5)


def test_scores_in_pieces_have_the_bits_of_one_piece(one_call: Callable[[str], RewardEngine]) -> None:
    engine, draw = one_call("bfloat16"), random.Random(5)
    whole = [[engine.score([PromptGroup(prompt, (own,))])[0][0] for own in OWN] for prompt in PROMPTS]
    sessions, found = [engine.open(prompt) for prompt in PROMPTS], [dict[int, float]() for _ in PROMPTS]
    for start in range(0, 160, 40):
        for session in sessions:
            for index, own in enumerate(OWN):
                if start < len(own):
                    session.extend(index, own[start : start + 40])
                    if start + 40 >= len(own):
                        session.finish(index)
        draw.shuffle(order := list(range(len(sessions))))
        for number, scores in zip(order, step(engine, [sessions[number] for number in order]), strict=True):
            found[number] |= scores
    assert [[scores[index] for index in range(len(OWN))] for scores in found] == whole


@pytest.mark.gpu
def test_the_real_kernel_is_right(kind: Path) -> None:
    config = read_config(kind)
    placement = place("cuda", "bfloat16", threads=1)
    mask = CellMask(config.max_tokens, config.heads // config.kv_heads, placement)
    assert is_right(flash, config, placement, mask)
