"""One way to do best-of-N, in a process of its own: `python legs.py TASK.json`, a JSON line for each problem.

Needs nothing but aiohttp and what the way itself needs, so that it runs in that system's own environment.
TASK: {"way": …, "n": …, "clients": …, "problems": [[{"role": …, "content": …}, …], …], "gateway": URL, "vllm": URL,
"reward": URL, "optillm": URL, "model": policy's name, "key": of our services, "temperature": …, "max_tokens": …}.
A line: {"index", "began", "seconds", "text", "tokens", "error"}, times in seconds since the first was asked.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

Messages = list[dict[str, str]]
Solve = Callable[[Messages], Awaitable[tuple[str, int | None]]]
"""Messages to the chosen solution, and how many tokens were generated for it (None: the system does not say)."""
Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""A URL and a body to the answer's; raises where the status is not 200."""


def _http(task: dict[str, Any], stack: AsyncExitStack) -> Post:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600), trust_env=False
    )
    stack.push_async_callback(session.close)
    headers = {"authorization": f"Bearer {task['key']}"}

    async def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
        async with session.post(url, json=body, headers=headers) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{url}: status {answer.status}: {(await answer.text())[:200]}")
            found: dict[str, Any] = await answer.json()
            return found

    return post


def _ours(task: dict[str, Any], stack: AsyncExitStack) -> Solve:
    """`POST /v1/solve`."""
    post = _http(task, stack)
    options = {"n": task["n"], "temperature": task["temperature"], "top_p": 1.0, "max_tokens": task["max_tokens"]}
    options |= {"adaptive": task["way"] == "ours-adaptive", "deadline_seconds": 600}

    async def solve(messages: Messages) -> tuple[str, int | None]:
        found = await post(f"{task['gateway']}/v1/solve", {"problem": messages[-1]["content"], **options})
        return found["solution"], found["usage"]["completion_tokens"]

    return solve


def _plain(task: dict[str, Any], stack: AsyncExitStack) -> Solve:
    """What one writes in an afternoon: n choices of one call, wait for all, score all, take the best."""
    post = _http(task, stack)

    async def solve(messages: Messages) -> tuple[str, int | None]:
        body = {
            "model": task["model"], "messages": messages, "n": task["n"], "temperature": task["temperature"],
            "top_p": 1.0, "max_tokens": task["max_tokens"],
        }  # fmt: skip
        drawn = await post(f"{task['vllm']}/v1/chat/completions", body)
        texts = [choice["message"]["content"] or "" for choice in drawn["choices"]]
        scored = await post(f"{task['reward']}/v1/score", {"messages": messages, "candidates": texts})
        scores = {one["index"]: one["score"] for one in scored["data"]}
        return texts[max(scores, key=scores.__getitem__)], drawn["usage"]["completion_tokens"]

    return solve


def _optillm(task: dict[str, Any], stack: AsyncExitStack) -> Solve:
    """optillm's server with its best-of-n, in which the policy itself gives marks; it takes no reward model."""
    post = _http(task, stack)

    async def solve(messages: Messages) -> tuple[str, int | None]:
        body = {
            "model": task["model"], "messages": messages, "temperature": task["temperature"],
            "max_tokens": task["max_tokens"],
        }  # fmt: skip
        found = await post(f"{task['optillm']}/v1/chat/completions", body)
        return found["choices"][0]["message"]["content"] or "", found["usage"]["completion_tokens"]

    return solve


WAYS: dict[str, Callable[[dict[str, Any], AsyncExitStack], Solve]] = {
    "ours": _ours,
    "ours-adaptive": _ours,
    "plain": _plain,
    "its_hub": lambda task, stack: importlib.import_module("its_hub_way").make(task, _http(task, stack), stack),
    "optillm": _optillm,
}


async def run(task: dict[str, Any]) -> None:
    """Ask all problems, so many at a time."""
    waiting = list(enumerate(task["problems"]))[::-1]
    async with AsyncExitStack() as stack:
        solve = WAYS[task["way"]](task, stack)
        start = time.monotonic()

        async def client() -> None:
            while waiting:
                index, messages = waiting.pop()
                began, text, tokens, error = time.monotonic(), "", None, None
                try:
                    text, tokens = await solve(messages)
                except Exception as failed:  # whatever a system throws is its result
                    error = f"{type(failed).__name__}: {failed}"[:300]
                line = {"index": index, "began": began - start, "seconds": time.monotonic() - began}
                print(json.dumps(line | {"text": text, "tokens": tokens, "error": error}), flush=True)

        await asyncio.gather(*(client() for _ in range(task["clients"])))


if __name__ == "__main__":
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text())))
