from __future__ import annotations

from pathlib import Path

import pytest
from prompts.conftest import write_checkpoint

from acemath_policy.canary import Canary, CanaryMismatch, Tolerance, check, check_prompts
from acemath_prompts import PromptEncoder

IDS = (1, 2, 3)


class Engine:
    def __init__(self, values: list[float]) -> None:
        self.values = values

    async def prompt_logprobs(self, token_ids: tuple[int, ...], timeout: float) -> list[float]:
        assert token_ids == IDS
        return self.values


def canary(*logprobs: float) -> Canary:
    return Canary.of({"cases": [{"token_ids": list(IDS), "logprobs": list(logprobs)}], "dtype": "bfloat16"})


async def test_small_differences_pass_and_are_told() -> None:
    mean, largest = await check(canary(-1.0, -2.0), Engine([-1.0, -2.125]), Tolerance(0.1, 1.5), 1)
    assert (mean, largest) == (0.0625, 0.125)


@pytest.mark.parametrize("values", [[-1.3, -2.0], [-2.6, -2.0]])
async def test_over_either_limit_is_a_mismatch(values: list[float]) -> None:
    with pytest.raises(CanaryMismatch, match="log-probabilities differ"):
        await check(canary(-1.0, -2.0), Engine(values), Tolerance(0.1, 1.5), 1)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"cases": [], "dtype": "bfloat16"},
        {"cases": [{"token_ids": [1, 2], "logprobs": []}], "dtype": "bfloat16"},
        {"cases": [{"token_ids": [1, 2], "logprobs": [0.5]}], "dtype": "bfloat16"},
        {"cases": [{"token_ids": [1, -2], "logprobs": [-0.5]}], "dtype": "bfloat16"},
        {"cases": [{"token_ids": [1, 2], "logprobs": [-0.5]}], "dtype": "bfloat16", "more": 1},
    ],
)
def test_another_form_cannot_be_compared(document: dict[str, object]) -> None:
    with pytest.raises(CanaryMismatch, match="malformed"):
        Canary.of(document)  # type: ignore[arg-type]


TURNS = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "7"}]


def told(ids: list[int]) -> Canary:
    case = {"messages": TURNS, "token_ids": ids, "logprobs": [-1.0] * (len(ids) - 1)}
    return Canary.of({"cases": [case], "dtype": "bfloat16"})


def test_the_prompts_are_the_trainers_or_the_version_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    canary = told(PromptEncoder.from_directory(tmp_path).encode_conversation(TURNS))  # type: ignore[arg-type]
    check_prompts(canary, tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text().replace("'\n' +", ""))
    with pytest.raises(CanaryMismatch, match="token ids of the canary's conversation"):
        check_prompts(canary, tmp_path)
    template.write_text("{% if %}")
    with pytest.raises(CanaryMismatch):
        check_prompts(canary, tmp_path)


def test_without_conversations_no_tokenizer_is_read(tmp_path: Path) -> None:
    check_prompts(canary(-1.0, -2.0), tmp_path / "absent")
