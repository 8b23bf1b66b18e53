"""`python chat_openai.py URL KEY`: LangChain's ChatOpenAI at a gateway, each use of it; for the clients' environment.

Prints one JSON line for each: `{"use", "ok", "said"}`. What asks for something else than a solution must be refused by
the name of the field: nothing is accepted and then ignored.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from langchain_core.messages import HumanMessage  # type: ignore[import-not-found]  # in an environment of its own
from langchain_openai import ChatOpenAI  # type: ignore[import-not-found]
from openai import BadRequestError
from pydantic import BaseModel

PROBLEM = "Three baskets of eight apples, and five are eaten. How many are left?"


class Final(BaseModel):
    """What a structured output would be."""

    answer: int


class Uses:
    """The client in all the ways in which it is used."""

    def __init__(self, url: str, key: str) -> None:
        self._common: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0}

    def _chat(self, **more: Any) -> ChatOpenAI:
        return ChatOpenAI(model="acemath", **self._common, **more)

    def invoke(self) -> bool:
        """One answer, with its tokens."""
        message = self._chat().invoke(PROBLEM)
        return "19" in str(message.content) and bool(message.usage_metadata["output_tokens"] > 0)

    def stream(self) -> bool:
        """In chunks."""
        return "19" in "".join(chunk.content for chunk in self._chat().stream(PROBLEM))

    def stream_with_usage(self) -> bool:
        """In chunks, asynchronously, the last one with the tokens."""

        async def read() -> list[Any]:
            return [chunk async for chunk in self._chat(stream_usage=True).astream(PROBLEM)]

        return any((chunk.usage_metadata or {}).get("total_tokens", 0) > 0 for chunk in asyncio.run(read()))

    def three_best(self) -> bool:
        """`n=3`: three choices."""
        return len(self._chat(n=3).generate([[HumanMessage(PROBLEM)]]).generations[0]) == 3

    def batch(self) -> bool:
        """Several at once."""
        return ["19" in message.content for message in self._chat().batch([PROBLEM] * 4)] == [True] * 4

    def all_parameters(self) -> bool:
        """Everything that it has a name for."""
        more = {"temperature": 0, "max_tokens": 64, "seed": 1, "top_p": 0.9, "stop": ["\n\n"]}
        neutral = {"presence_penalty": 0, "frequency_penalty": 0, "logprobs": False}
        return bool(self._chat(**more, **neutral).invoke(PROBLEM).usage_metadata["output_tokens"] <= 64)

    def our_own_fields(self) -> bool:
        """`best_of` and `acemath` through `extra_body`."""
        body = {"best_of": 4, "acemath": {"selection": "weighted_vote", "candidates": "scores"}}
        return "19" in str(self._chat(extra_body=body).invoke(PROBLEM).content)

    def its_own_answer_as_history(self) -> bool:
        """What it was given is sent back as an earlier turn."""
        chat = self._chat()
        answer = chat.invoke(PROBLEM)
        turns = [("system", "Be brief."), ("user", PROBLEM), answer, ("user", PROBLEM)]
        return "19" in str(chat.invoke(turns).content)

    def refused(self) -> dict[str, Callable[[], Any]]:
        """What is no solution of a problem, by the field that must be named."""
        chat = self._chat()
        return {
            "response_format": lambda: chat.with_structured_output(Final, method="json_schema").invoke(PROBLEM),
            "tools": lambda: chat.bind_tools([Final]).invoke(PROBLEM),
            "logprobs": lambda: self._chat(logprobs=True).invoke(PROBLEM),
        }


def _refusal_names(field: str, ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except BadRequestError as error:
        return error.param == field and error.code == "unsupported_parameter"
    return False


def _tell(use: str, check: Callable[[], bool]) -> bool:
    try:
        ok, said = check(), ""
    except Exception as error:  # whatever a client raises is what we want to read
        ok, said = False, f"{type(error).__name__}: {error}"[:500]
    print(json.dumps({"use": use, "ok": ok, "said": said}), flush=True)
    return ok


def main() -> int:
    """1 when a use failed."""
    uses = Uses(*sys.argv[1:3])
    taken = ["invoke", "stream", "stream_with_usage", "three_best", "batch", "all_parameters", "our_own_fields"]
    found = [_tell(name, getattr(uses, name)) for name in [*taken, "its_own_answer_as_history"]]
    for field, ask in uses.refused().items():
        found.append(_tell(f"400 names {field}", partial(_refusal_names, field, ask)))
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
