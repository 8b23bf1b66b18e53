"""Runs inside vLLM's API server (`--middleware`): only the paths that this project uses are answered.

vLLM's key guards `/v1` alone; `/invocations`, `/tokenize` and others would generate for, or tell things to, anybody who
reaches the port. Standard library only, in a folder of its own, so that any Python that runs vLLM can import it.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_HEADERS = [(b"content-type", b"application/json")]
_NOT_SERVED = b'{"error":{"message":"not served here","type":"NotFoundError","param":null,"code":404}}'
_NO_KEY = b'{"error":"Unauthorized"}'


class OnlyWhatIsUsed:
    """ASGI middleware of a policy's server: 404 for every other path, and no websocket."""

    served = frozenset({"/health", "/metrics", "/v1/models", "/v1/completions"})

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it without reading it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] not in self.served:
            await _refuse(send, 404, _NOT_SERVED)
        elif not self._admits(scope):
            await _refuse(send, 401, _NO_KEY)
        else:
            await self._app(scope, receive, send)

    def _admits(self, scope: Message) -> bool:
        return True  # vLLM asks for its key under /v1 itself


class OnlyScores(OnlyWhatIsUsed):
    """ASGI middleware of a reward model's server; asks for the key where vLLM itself does not."""

    served = frozenset({"/health", "/metrics", "/classify", "/pooling"})

    def _admits(self, scope: Message) -> bool:
        key = os.environ.get("VLLM_API_KEY")  # noqa: TID251 - inside vLLM, where our settings are not
        if not key or scope["path"] in ("/health", "/metrics"):
            return True
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(shown, f"Bearer {key}".encode())


async def _refuse(send: Send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": body})
