r"""The two conversations, exactly as the AceMath model cards have them.

The system texts are those of nvidia/AceMath-7B-Instruct (the default of its chat template) and of nvidia/AceMath-7B-RM
("check", not "put"). What turns these messages into token ids is `acemath_prompts`; training, gateway and reward
service all start from the functions below, so that a checkpoint is asked in the words it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

POLICY_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
REWARD_SYSTEM = r"Please reason step by step, and check your final answer within \boxed{}."


class ChatMessage(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


def policy_messages(problem: str) -> list[ChatMessage]:
    """What the policy is asked: system text and the problem as the only user turn."""
    return [{"role": "system", "content": POLICY_SYSTEM}, {"role": "user", "content": problem}]


def policy_conversation(turns: Sequence[ChatMessage]) -> list[ChatMessage]:
    """What the policy is asked in a chat: the caller's turns unchanged; our system text only where they bring none."""
    if any(turn["role"] == "system" for turn in turns):
        return list(turns)
    return [{"role": "system", "content": POLICY_SYSTEM}, *turns]


def reward_context(turns: Sequence[ChatMessage]) -> list[ChatMessage]:
    """What precedes a candidate for the reward model: its own system text, then the user and assistant turns."""
    spoken = [turn for turn in turns if turn["role"] != "system"]
    return [{"role": "system", "content": REWARD_SYSTEM}, *spoken]


def reward_messages(problem: str, solution: str) -> list[ChatMessage]:
    """What the reward model scores: system text, problem, one candidate solution."""
    context = reward_context([{"role": "user", "content": problem}])
    return [*context, {"role": "assistant", "content": solution}]
