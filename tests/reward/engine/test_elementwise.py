"""What lies between products: the compiled loops beside torch's operators and beside float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acemath_reward.engine.compiled import CompiledLoops
from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.device import place
from acemath_reward.engine.elementwise import Elementwise, TensorOperators, rotary_tables

POSITIONS = 64
ULP = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}


@dataclass(frozen=True)
class Case:
    kind: str
    dtype: str
    kv_heads: int = 2
    group: int = 3
    head_dim: int = 32
    hidden: int = 96


def config_of(case: Case) -> EngineConfig:
    return EngineConfig(
        architecture="LlamaForSequenceClassification",
        vocab_size=8,
        hidden_size=case.hidden,
        intermediate_size=8,
        layers=1,
        heads=case.kv_heads * case.group,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        norm_eps=1e-5,
        rope_theta=10000.0,
        max_tokens=POSITIONS,
        qkv_bias=False,
    )


@cache
def between(case: Case) -> Elementwise:
    kind = CompiledLoops if case.kind == "compiled" else TensorOperators
    return kind(config_of(case), place("cpu", case.dtype, threads=1))  # type: ignore[arg-type]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


cases = st.builds(
    Case,
    st.sampled_from(["compiled", "operators"]),
    st.sampled_from(["bfloat16", "float32"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([2, 4, 16, 30, 32, 64, 96]),  # below, at and beside whole lanes
    st.sampled_from([8, 15, 16, 17, 96, 576]),
)


def near(found: Tensor, exact: Tensor, roundings: int) -> bool:
    error = (found.double() - exact).abs()
    return bool((error <= roundings * ULP[found.dtype] * exact.abs().clamp_min(1.0)).all())


@settings(deadline=None, max_examples=60)
@given(cases, st.integers(1, 9), st.integers(0, 99))
def test_the_norm_is_that_of_its_formula(case: Case, rows: int, seed: int) -> None:
    dtype = getattr(torch, case.dtype)
    x, weight = drawn(seed, rows, case.hidden).to(dtype), drawn(seed + 1, case.hidden).to(dtype)
    wide = x.double()
    exact = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert near(between(case).norm(x, weight), exact, roundings=4)


@settings(deadline=None, max_examples=60)
@given(cases, st.integers(1, 9), st.integers(0, 5), st.integers(0, 99))
def test_queries_are_turned_into_their_places(case: Case, rows: int, first: int, seed: int) -> None:
    dtype, width = getattr(torch, case.dtype), case.kv_heads * case.head_dim * (case.group + 2)
    heads, positions = drawn(seed, rows, width).to(dtype), torch.randint(0, POSITIONS, (rows,))
    out = torch.full((case.kv_heads, first + rows + 1, case.group, case.head_dim), 7.0, dtype=dtype)
    between(case).put_queries(heads, positions, out, first)
    queries = heads[:, : case.kv_heads * case.group * case.head_dim].double()
    exact = turned(queries.view(rows, -1, case.head_dim), positions, case)
    found = out[:, first : first + rows].transpose(0, 1).flatten(1, 2)
    assert near(found, exact, roundings=4)
    assert bool((out[:, :first] == 7).all()) and bool((out[:, first + rows :] == 7).all())


@settings(deadline=None, max_examples=60)
@given(cases, st.integers(1, 9), st.integers(0, 5), st.integers(0, 99))
def test_keys_are_turned_and_values_copied(case: Case, rows: int, first: int, seed: int) -> None:
    dtype, part = getattr(torch, case.dtype), case.kv_heads * case.head_dim
    heads, positions = drawn(seed, rows, part * (case.group + 2)).to(dtype), torch.randint(0, POSITIONS, (rows,))
    out = torch.full((first + rows + 1, 2, case.kv_heads, case.head_dim), 7.0, dtype=dtype)
    between(case).put_keys_and_values(heads, positions, out, first)
    keys = heads[:, -2 * part : -part].double().view(rows, case.kv_heads, case.head_dim)
    assert near(out[first : first + rows, 0], turned(keys, positions, case), roundings=4)
    assert torch.equal(out[first : first + rows, 1].flatten(1), heads[:, -part:])
    assert bool((out[:first] == 7).all()) and bool((out[first + rows :] == 7).all())


def turned(x: Tensor, positions: Tensor, case: Case) -> Tensor:
    """Pairs (k, k + half) as complex numbers, multiplied by the tables' unit numbers."""
    cos, sin = rotary_tables(config_of(case), getattr(torch, case.dtype))
    turn = torch.complex(cos.double(), sin.double())[positions][:, None]
    pairs = torch.complex(*x.chunk(2, dim=-1)) * turn
    return torch.cat((pairs.real, pairs.imag), dim=-1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["compiled", "operators"])
def test_a_row_has_the_same_bits_beside_any_others(kind: str, dtype: str) -> None:
    loops, wanted = between(Case(kind, dtype, hidden=90)), getattr(torch, dtype)
    x, weight = drawn(1, 40, 90).to(wanted), drawn(2, 90).to(wanted)
    whole = loops.norm(x, weight)
    assert torch.equal(loops.norm(x.flip(0), weight).flip(0), whole)
    assert all(torch.equal(loops.norm(x[row : row + 1], weight)[0], whole[row]) for row in range(40))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [3, 90])
def test_what_is_not_a_number_stays_so(dtype: str, value: float, column: int) -> None:
    x = torch.ones(2, 96, dtype=getattr(torch, dtype))
    x[0, column] = value
    found = between(Case("compiled", dtype)).norm(x, torch.ones_like(x[0]))
    assert bool(found[0, column].isnan())  # inf / sqrt(inf) too
    assert bool(found[1].isfinite().all())


def test_rounding_is_to_nearest_even() -> None:
    x = torch.ones(1, 512, dtype=torch.bfloat16)
    weight = torch.arange(1, 513).to(torch.bfloat16) / 128
    scale = float(torch.tensor(1 + 1e-5).rsqrt())
    expected = (torch.full((512,), scale) * weight.float()).to(torch.bfloat16)
    assert torch.equal(between(Case("compiled", "bfloat16", hidden=512)).norm(x, weight)[0], expected)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 2 + 2**-7], dtype=torch.float32)
    halves = ties.to(torch.bfloat16)
    assert halves.tolist() == [1.0, 1 + 2**-6, -1.0, 2.0]  # what the loops must do as well, by the line above


def test_rows_that_are_not_side_by_side_are_refused() -> None:
    loops = between(Case("compiled", "float32"))
    with pytest.raises((RuntimeError, TypeError), match=r"view|array"):
        loops.norm(torch.ones(4, 192)[:, ::2], torch.ones(96))


def test_rows_beyond_the_end_are_refused() -> None:
    loops, heads = between(Case("compiled", "float32")), torch.ones(4, 2 * 32 * 5)
    with pytest.raises(AssertionError):
        loops.put_queries(heads, torch.zeros(4, dtype=torch.int64), torch.ones(2, 6, 3, 32), 3)
    with pytest.raises(AssertionError):
        loops.put_keys_and_values(heads, torch.zeros(4, dtype=torch.int64), torch.ones(6, 2, 2, 32), 3)
