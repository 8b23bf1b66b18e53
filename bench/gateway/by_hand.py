"""The least that a gateway of best-of-N can be on this machine: what all others are compared with beside `direct`.

    python -m bench.gateway.by_hand --port 13003 --policy http://127.0.0.1:13000 --reward http://127.0.0.1:13001

`POST /v1/chat/completions` with `n`: one call for n choices, one call for all scores, the best of them. The same
server (uvicorn on uvloop and httptools) and the same client (aiohttp) as the gateway's, and nothing else: no
framework, key, limit, lease, release, check, deadline, retry, metric or log. An afternoon's work, no service.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
HEADERS = [(b"content-type", b"application/json")]


class ByHand:
    """An ASGI application.

    Args:
        policy: URL of an OpenAI-compatible server.
        reward: URL of a reward service.
    """

    def __init__(self, policy: str, reward: str) -> None:
        self._policy, self._reward = f"{policy}/v1/chat/completions", f"{reward}/v1/score"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request; everything but a question is answered with an empty object."""
        found = await self._best(await _body(receive)) if scope["method"] == "POST" else {}
        said = json.dumps(found).encode()
        length = (b"content-length", str(len(said)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
        await send({"type": "http.response.body", "body": said})

    async def _best(self, asked: dict[str, Any]) -> dict[str, Any]:
        drawn = await self._post(self._policy, asked)
        texts = [choice["message"]["content"] for choice in drawn["choices"]]
        scored = await self._post(self._reward, {"messages": asked["messages"], "candidates": texts})
        scores = {one["index"]: one["score"] for one in scored["data"]}
        return drawn | {"choices": [drawn["choices"][max(scores, key=scores.__getitem__)]]}

    async def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._session is None:  # made on the loop that uses it
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        async with self._session.post(url, json=body) as answer:
            found: dict[str, Any] = await answer.json()
            return found


async def _body(receive: Receive) -> dict[str, Any]:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    found: dict[str, Any] = json.loads(b"".join(parts))
    return found


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward", required=True)
    options = parser.parse_args()
    app: Any = ByHand(options.policy, options.reward)
    uvicorn.run(
        app, port=options.port, loop="uvloop", http="httptools", lifespan="off", log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
