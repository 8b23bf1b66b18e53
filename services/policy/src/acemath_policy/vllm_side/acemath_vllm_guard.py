"""Runs inside vLLM's API server (`--middleware`): only the paths that this project uses are answered.

vLLM's key guards `/v1` alone; `/invocations`, `/tokenize` and others would generate for, or tell things to, anybody who
reaches the port. Standard library only, in a folder of its own, so that any Python that runs vLLM can import it.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

SERVED = frozenset({"/health", "/metrics", "/v1/models", "/v1/completions"})

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_HEADERS = [(b"content-type", b"application/json")]
_BODY = b'{"error":{"message":"not served here","type":"NotFoundError","param":null,"code":404}}'


class OnlyWhatIsUsed:
    """ASGI middleware: 404 for every other path, and no websocket."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it without reading it."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in SERVED):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": _BODY})
        else:
            await send({"type": "websocket.close", "code": 1008})
