"""What a reward model must give, by the engine in process: the same bits as the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acemath_core.prompts import reward_context
from acemath_prompts import PromptEncoder
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.ports import PromptGroup
from bench.swaps.load import PROBLEMS


def scores_of(directory: Path, text: str) -> tuple[float, ...]:
    """What a reward model gives to a text as the solution of each of `PROBLEMS`, by the engine in process."""
    encoder, engine = PromptEncoder.from_directory(directory), load_engine(directory, place("cpu", "auto", threads=1))
    return tuple(_score(encoder, engine, problem, text) for problem in PROBLEMS)


def _score(encoder: PromptEncoder, engine: Any, problem: str, text: str) -> float:
    context = reward_context([{"role": "user", "content": problem}])
    prompt = encoder.encode_prompt(context)
    whole = encoder.encode_conversation([*context, {"role": "assistant", "content": text}])
    assert whole[: len(prompt)] == prompt
    ((score,),) = engine.score([PromptGroup(tuple(prompt), (tuple(whole[len(prompt) :]),))])
    return float(score)
