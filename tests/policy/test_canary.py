from __future__ import annotations

import pytest

from acemath_policy.canary import Canary, CanaryMismatch, Tolerance, check

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
