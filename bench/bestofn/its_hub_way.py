"""its_hub's BestOfN with its own client for vLLM; its outcome reward model asks our reward service.

Imported by `legs.py` in an environment that has its_hub.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from its_hub.api import AbstractOutcomeRewardModel, ChatMessage  # type: ignore[import-not-found]
from its_hub.core.algorithms.bon import BestOfN  # type: ignore[import-not-found]
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel  # type: ignore[import-not-found]

Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Reward(AbstractOutcomeRewardModel):  # type: ignore[misc]
    """The same scores as everybody's.

    Args:
        url: of the reward service.
        post: calls it.
    """

    def __init__(self, url: str, post: Post) -> None:
        self._url, self._post = url, post

    def score(self, messages: Any, **_: Any) -> Any:
        """Never asked for: `BestOfN.ainfer` scores asynchronously."""
        raise RuntimeError("this reward model is asked by ascore, on the event loop of its connections")

    async def ascore(self, messages: Any, orchestrator: Any = None, **_: Any) -> list[float]:
        """Of conversations that differ in their last turn."""
        turns = [[{"role": one.role, "content": one.content or ""} for one in chat] for chat in messages]
        body = {"messages": turns[0][:-1], "candidates": [chat[-1]["content"] for chat in turns]}
        found = await self._post(f"{self._url}/v1/score", body)
        return [one["score"] for one in sorted(found["data"], key=lambda one: one["index"])]


def make(task: dict[str, Any], post: Post, stack: AsyncExitStack) -> Any:
    """See `legs.WAYS`."""
    model = OpenAICompatibleLanguageModel(
        endpoint=f"{task['vllm']}/v1",
        api_key=task["key"],
        model_name=task["model"],
        temperature=task["temperature"],
        max_tokens=task["max_tokens"],
    )
    stack.push_async_callback(model.close)
    best = BestOfN(Reward(task["reward"], post))

    async def solve(messages: list[dict[str, str]]) -> tuple[str, int | None]:
        chat = [ChatMessage(role=one["role"], content=one["content"]) for one in messages]
        found = await best.ainfer(model, chat, task["n"], return_response_only=False)
        return found.the_one["content"] or "", found.usage.completion_tokens

    return solve
