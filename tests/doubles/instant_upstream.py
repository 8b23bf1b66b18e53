"""Everything that a gateway has behind it, answering at once: what is measured through it is the gateway.

    python tests/doubles/instant_upstream.py --port 12000 --policy p@s1-… --reward r@s1-…

On the port, as vLLM and its agent: `POST /v1/completions` (streaming), `GET /v1/models`, `GET /v1/slots`; and as any
OpenAI-compatible server, for other gateways: `POST /v1/chat/completions` (whole). On the next port, as the reward
service: `POST /v1/score`, `WS /v1/score/live` (in `instant_live`), `GET /v1/slots`. Every answer was rendered before:
this process costs some 20 µs a request, a tenth of what a web framework would, so that it may share a core with who
asks. A candidate is 48 tokens (or `max_tokens`) in two chunks, and ends in `\boxed{19}` or `\boxed{6}`; a score is a
function of the candidate's text. `tests/contract` runs its suites on this, too; whole completions are not here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import signal
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import httptools

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from doubles.instant_live import PATH as LIVE_PATH
from doubles.instant_live import LiveConnection

TOKENS = 48
TEXTS = ("Three baskets of eight make 24. ", "24 - 5 = 19. The final answer is \\boxed{19}.", "3 + 8 = 11. \\boxed{6}.")
CONTEXT_LENGTH = 262_144
HOST = "127.0.0.1"
RATING = b"Rate the following responses"  # optillm's best-of-N asks the model for a mark, and reads a number
Answer = Callable[[bytes], bytes]
Routes = dict[bytes, Answer]
Live = Callable[[bytes], asyncio.Protocol]


def routes_of_policy(version: str, endpoint: str, context_length: int = CONTEXT_LENGTH) -> Routes:
    """What vLLM, its agent, and a server of OpenAI's API answer."""
    card = {"id": version, "object": "model", "max_model_len": context_length}
    return {
        b"/v1/slots": lambda _: _slots(version, endpoint),
        b"/v1/models": lambda _: _json({"object": "list", "data": [card]}),
        b"/v1/completions": lambda body: _generated(version, context_length, json.loads(body)),
        b"/v1/chat/completions": lambda body: _rating() if RATING in body else _chat(_count(body)),
    }


def routes_of_reward(version: str, endpoint: str, max_words: int = CONTEXT_LENGTH) -> Routes:
    """What the reward service answers; a candidate of more than `max_words` is too long for it."""
    return {
        b"/v1/slots": lambda _: _slots(version, endpoint),
        b"/v1/score": lambda body: _scores(version, max_words, json.loads(body)),
    }


def live_of_reward(version: str, max_words: int = CONTEXT_LENGTH) -> Live:
    """What the reward service's websockets are; the same scores as those that are posted."""

    def score(text: str) -> dict[str, Any] | None:
        return None if len(text.split()) > max_words else _score(text)

    return functools.partial(LiveConnection, version, score)


def _count(body: bytes) -> int:
    return int(json.loads(body).get("n") or 1)


def _text(index: int) -> str:
    return TEXTS[0] + TEXTS[1 + index % 2]


def _generated(version: str, context_length: int, body: dict[str, Any]) -> bytes:
    if len(body["prompt"]) >= context_length:
        return _refusal(f"This model's maximum context length is {context_length} tokens.", None)
    return _completions(version, body.get("n", 1), min(TOKENS, body["max_tokens"]))


@functools.lru_cache(256)
def _completions(version: str, n: int, tokens: int) -> bytes:
    """vLLM's stream: each candidate's first token, then the rest of it with its end, then the usage."""
    head = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": version}
    events: list[dict[str, Any]] = []
    for index in range(n):
        for piece in _pieces(_text(index), tokens):
            events.append(head | {"choices": [{"index": index, "logprobs": None, **piece}]})
    usage = {"prompt_tokens": 100, "completion_tokens": n * tokens, "total_tokens": 100 + n * tokens}
    events.append(head | {"choices": [], "usage": usage, "system_fingerprint": version})
    said = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return _response(said.encode(), b"text/event-stream; charset=utf-8")


def _pieces(text: str, tokens: int) -> list[dict[str, Any]]:
    """A candidate's first token, and the others where there are any; cut off like any that is too long."""
    reason, kept = ("stop", text) if tokens == TOKENS else ("length", text[:tokens])
    first = {"text": kept[:1], "token_ids": [1000], "finish_reason": reason if tokens == 1 else None}
    rest = {"text": kept[1:], "token_ids": list(range(1001, 1000 + tokens)), "finish_reason": reason}
    return [first, rest][:tokens]


@functools.lru_cache(256)
def _chat(n: int) -> bytes:
    return _chat_of([_text(index) for index in range(n)])


@functools.cache
def _rating() -> bytes:
    return _chat_of(["7"])


def _chat_of(texts: list[str]) -> bytes:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
        for i, text in enumerate(texts)
    ]
    made = TOKENS * len(texts)
    usage = {"prompt_tokens": 100, "completion_tokens": made, "total_tokens": 100 + made}
    head = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "acemath"}
    return _json(head | {"choices": choices, "usage": usage})


def _scores(version: str, max_words: int, body: dict[str, Any]) -> bytes:
    texts: list[str] = body["candidates"]
    if any(len(text.split()) > max_words for text in texts):
        return _refusal("too long", "context_length_exceeded")
    data = [{"index": i, **_score(text)} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 100, "candidate_tokens": TOKENS * len(texts), "total_tokens": 100 + TOKENS * len(texts)}
    timings = dict.fromkeys(["tokenize_seconds", "queue_seconds", "compute_seconds", "total_seconds"], 0.0)
    end: dict[str, object] = {"model": version, "usage": usage, "timings": timings}
    if not body.get("stream"):
        return _json(end | {"data": data})
    events = [("score", item) for item in data] + [("done", end)]
    said = "".join(f"event: {name}\ndata: {json.dumps(event)}\n\n" for name, event in events)
    model = b"x-acemath-model: %b\r\n" % version.encode()
    return _response(said.encode(), b"text/event-stream; charset=utf-8", headers=model)


def _score(text: str) -> dict[str, Any]:
    return {"score": zlib.crc32(text.encode()) / 2**32, "tokens": TOKENS}


def _refusal(message: str, code: str | None) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return _response(json.dumps({"error": error}).encode(), b"application/json", b"400 Bad Request")


def _slots(version: str, endpoint: str) -> bytes:
    return _json([{"version": version, "state": "active", "endpoint": endpoint, "since": 0.0}])


def _json(said: object) -> bytes:
    return _response(json.dumps(said).encode(), b"application/json")


def _response(body: bytes, kind: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n" % (status, kind, headers, len(body))
    return head + body


_NOT_FOUND = _response(b'{"error": {"message": "no such path"}}', b"application/json", b"404 Not Found")


class Connection(asyncio.Protocol):
    """One keep-alive connection; answers each request when its body is complete."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url, self._body = b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._give_up()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self._transport is not None
        route = self._routes.get(self._url.partition(b"?")[0])
        self._transport.write(route(self._body) if route else _NOT_FOUND)
        self._url = self._body = b""

    def _upgrade(self, rest: bytes) -> None:
        self._give_up()

    def _give_up(self) -> None:
        assert self._transport is not None
        self._transport.abort()


class UpgradableConnection(Connection):
    """One that becomes a websocket when it asks for that; it looks at headers, which costs 2 µs a request."""

    def __init__(self, routes: Routes, live: Live) -> None:
        super().__init__(routes)
        self._live, self._key = live, b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"sec-websocket-key":
            self._key = value

    def on_message_complete(self) -> None:
        if not self._parser.should_upgrade():
            super().on_message_complete()

    def _upgrade(self, rest: bytes) -> None:
        if self._url != LIVE_PATH or not self._key:
            self._give_up()
            return
        assert self._transport is not None
        socket = self._live(self._key)
        self._transport.set_protocol(socket)
        socket.connection_made(self._transport)
        socket.data_received(rest)


@contextlib.asynccontextmanager
async def instant(routes: Routes, port: int = 0, live: Live | None = None) -> AsyncIterator[str]:
    """Serve on a port of loopback, a free one by default, for the length of the block; gives the base URL."""
    made = functools.partial(UpgradableConnection, routes, live) if live else functools.partial(Connection, routes)
    server = await asyncio.get_running_loop().create_server(made, HOST, port, backlog=4096)
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _serve_both(port: int, policy: str, reward: str) -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with (
        instant(routes_of_policy(policy, f"http://{HOST}:{port}"), port),
        instant(routes_of_reward(reward, f"http://{HOST}:{port + 1}"), port + 1, live_of_reward(reward)),
    ):
        await told.wait()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description="a policy and a reward service that answer at once")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward", required=True)
    uvloop.run(_serve_both(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
