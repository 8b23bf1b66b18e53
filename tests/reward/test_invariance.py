"""A score has the same bits alone, with any mates, in any order, in any grouping, and beside its own duplicates."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acemath_reward.engine.device import place
from acemath_reward.engine.model import RewardEngine, load_engine
from acemath_reward.ports import PromptGroup, TokenIds

CASES = [("llama", "bfloat16"), ("llama", "float32"), ("qwen2", "bfloat16"), ("qwen2", "float32")]
PROMPT_LENGTHS = (0, 1, 31, 90)
OWN_LENGTHS = (1, 2, 15, 33, 64, 100, 150)


def ids(length: int, seed: int) -> TokenIds:
    draw = random.Random(seed)
    return tuple(draw.randrange(384) for _ in range(length))


PROMPTS = tuple(ids(length, length) for length in PROMPT_LENGTHS)
OWN = tuple(ids(length, 1000 + length) for length in OWN_LENGTHS)


@cache
def engine_and_truth(directory: Path, dtype: str) -> tuple[RewardEngine, dict[tuple[int, int], float]]:
    engine = load_engine(directory, place("cpu", dtype, threads=1))  # type: ignore[arg-type]
    truth = {
        (p, c): engine.score([PromptGroup(prompt, (own,))])[0][0]
        for p, prompt in enumerate(PROMPTS)
        for c, own in enumerate(OWN)
    }
    return engine, truth


# A batch: groups of (prompt, candidates); a candidate may come twice, a prompt may come in two groups.
batches = st.lists(
    st.tuples(st.integers(0, len(PROMPTS) - 1), st.lists(st.integers(0, len(OWN) - 1), min_size=1, max_size=6)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=batches)
def test_a_score_has_the_same_bits_in_every_batch(
    kind: str, dtype: str, request: pytest.FixtureRequest, batch: list[tuple[int, list[int]]]
) -> None:
    engine, truth = engine_and_truth(request.getfixturevalue(kind), dtype)
    found = engine.score([PromptGroup(PROMPTS[p], tuple(OWN[c] for c in own)) for p, own in batch])
    assert found == [[truth[p, c] for c in own] for p, own in batch]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_score_has_the_same_bits_beside_a_very_large_batch(llama: Path, dtype: str) -> None:
    engine, truth = engine_and_truth(llama, dtype)
    crowd = [PromptGroup(ids(60, seed), tuple(ids(40 + seed, 7 * seed + k) for k in range(8))) for seed in range(12)]
    found = engine.score([*crowd, PromptGroup(PROMPTS[2], OWN), *crowd])[len(crowd)]
    assert found == [truth[2, c] for c in range(len(OWN))]


def test_two_threads_give_the_bits_of_one(llama: Path) -> None:
    _, truth = engine_and_truth(llama, "bfloat16")
    engine = load_engine(llama, place("cpu", "bfloat16", threads=2))
    assert engine.score([PromptGroup(PROMPTS[3], OWN)])[0] == [truth[3, c] for c in range(len(OWN))]
