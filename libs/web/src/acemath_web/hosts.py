"""Where everybody on this machine may call, a web page must not: it can by giving its own name our address."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from acemath_core.errors import InvalidRequest
from acemath_web.errors import error_response

_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1; before a websocket is accepted the server makes it an HTTP 403


class LoopbackHostMiddleware:
    """Refuses what was sent to another name than this machine's own (DNS rebinding).

    A browser lets a page talk to the host that it came from. When that name resolves to 127.0.0.1 the next time, the
    page talks to us; its `Host` header still has the name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with a 400."""
        if scope["type"] not in ("http", "websocket") or _is_ours(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "the host is not loopback"})
        else:
            refusal = InvalidRequest(
                "one Host header must name loopback, such as 127.0.0.1 or localhost, where no API keys are configured",
                param="host",
            )
            await error_response(refusal)(scope, receive, send)


def _is_ours(scope: Scope) -> bool:
    """By the one Host header that a request has; only HTTP/1.0 knows none (RFC 9112, section 3.2)."""
    hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
    return names_loopback(hosts[0]) if len(hosts) == 1 else not hosts and scope.get("http_version") == "1.0"


@lru_cache(256)  # callers send the same one each time, and taking it apart costs as much as a middleware
def names_loopback(host: str) -> bool:
    """Whether a `Host` header, with or without a port, names this machine's loopback."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("localhost", "localhost.") or ip_address(name).is_loopback
    except ValueError:
        return False
