"""The engine against transformers on the same checkpoint: same function, other order of rounding."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from acemath_reward.engine.device import place
from acemath_reward.engine.model import RewardEngine, load_engine
from acemath_reward.ports import PromptGroup, TokenIds

LENGTHS = (1, 2, 3, 17, 64, 127, 128, 129, 200, 257)


def ids(length: int, seed: int) -> TokenIds:
    draw = random.Random(seed)
    return tuple(draw.randrange(3, 380) for _ in range(length))


PROMPT = ids(57, 1)
CANDIDATES = tuple(ids(length, seed + 2) for seed, length in enumerate(LENGTHS))


def reference(directory: Path, dtype: torch.dtype, sequences: list[TokenIds]) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype).eval()
    with torch.inference_mode():
        return [model(torch.tensor([sequence])).logits.item() for sequence in sequences]


def ours(directory: Path, dtype: str, groups: list[PromptGroup], **options: int) -> list[list[float]]:
    return load_engine(directory, place("cpu", dtype, threads=1, **options)).score(groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-5), ("bfloat16", 0.15)])
def test_scores_are_those_of_transformers_in_float32(
    kind: str, dtype: str, bound: float, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(kind)
    expected = reference(directory, torch.float32, [PROMPT + candidate for candidate in CANDIDATES])
    found = ours(directory, dtype, [PromptGroup(PROMPT, CANDIDATES)])[0]
    assert max(expected) - min(expected) > 1.0, "the comparison must have something to tell apart"
    assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) < bound
    assert max(range(len(found)), key=found.__getitem__) == max(range(len(found)), key=expected.__getitem__)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_bfloat16_is_as_near_to_float32_as_transformers_is(kind: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(kind)
    sequences = [PROMPT + candidate for candidate in CANDIDATES]
    exact = reference(directory, torch.float32, sequences)
    theirs = reference(directory, torch.bfloat16, sequences)
    found = ours(directory, "bfloat16", [PromptGroup(PROMPT, CANDIDATES)])[0]
    error = max(abs(a - b) for a, b in zip(exact, found, strict=True))
    assert error < 2 * max(abs(a - b) for a, b in zip(exact, theirs, strict=True))


def test_without_a_prompt_the_score_is_the_same_within_rounding(llama: Path) -> None:
    whole = ours(llama, "float32", [PromptGroup((), tuple(PROMPT + candidate for candidate in CANDIDATES))])[0]
    shared = ours(llama, "float32", [PromptGroup(PROMPT, CANDIDATES)])[0]
    assert whole == pytest.approx(shared, abs=2e-5)


@pytest.mark.parametrize("head_dim", [None, 8])
def test_a_head_width_of_its_own_and_one_key_head(tmp_path: Path, head_dim: int | None) -> None:
    from reward.tiny import write_checkpoint

    changes = {"num_key_value_heads": 1} | ({"head_dim": head_dim} if head_dim else {})
    directory = write_checkpoint(tmp_path / "odd", "llama", **changes)
    expected = reference(directory, torch.float32, [PROMPT + CANDIDATES[4]])
    assert ours(directory, "float32", [PromptGroup(PROMPT, CANDIDATES[4:5])])[0] == pytest.approx(expected, abs=2e-5)


def test_sharded_checkpoints_are_read_whole(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    group = [PromptGroup(PROMPT, CANDIDATES)]
    assert ours(tmp_path, "bfloat16", group) == ours(llama, "bfloat16", group)


def test_facts_say_what_it_runs_on(llama: Path) -> None:
    engine: RewardEngine = load_engine(llama, place("cpu", "float32", threads=1, row_tile=64))
    facts = engine.facts()
    assert (facts["dtype"], facts["device"], facts["row_tile"]) == ("float32", "cpu", 64)
    assert facts["architecture"] == "LlamaForSequenceClassification"
    assert (engine.max_tokens, engine.vocab_size) == (320, 384)
