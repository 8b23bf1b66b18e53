"""Bearer keys, compared in constant time; several may be valid at once, so that they can be rotated."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from acemath_core.errors import Unauthenticated
from acemath_web.context import header_of
from acemath_web.errors import error_response

PROBE_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Asked by machines that carry no key; what they answer without one tells nothing but well or not."""
METRICS_PATH = "/metrics"
_STRANGER = "acemath.stranger"
_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1; before a websocket is accepted the server makes it an HTTP 403


class KeySet:
    """The keys that are valid now; holds digests only."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    def __bool__(self) -> bool:
        """Whether any key is configured."""
        return bool(self._digests)

    def admits(self, key: str) -> bool:
        """Whether the key is one of the set; takes the same time whichever it is, and whether it is."""
        digest, found = _digest(key), False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


class BearerMiddleware:
    """Refuses what has no valid `Authorization: Bearer` key: a request with 401, a websocket before it is accepted.

    Args:
        app: the application.
        keys: those who may call; none admit everybody.
        internal_keys: those of the internal network, asked for by `/metrics` where callers have keys, since such a port
            may be published. None: only the internal network reaches this port, and `/metrics` needs no key.
        open_paths: paths that need no key, besides the probes.
    """

    def __init__(
        self, app: ASGIApp, keys: KeySet, internal_keys: KeySet | None = None, open_paths: Collection[str] = ()
    ) -> None:
        self._app, self._keys, self._internal = app, keys, internal_keys
        self._open = PROBE_PATHS | frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal.message})
        else:
            await error_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Unauthenticated | None:
        if scope["type"] not in ("http", "websocket") or not self._keys:
            return None
        header, path = header_of(scope, "authorization"), scope["path"]
        if scope["type"] == "http" and path == METRICS_PATH:
            return None if self._internal is None else _refuse(header, self._internal)
        if scope["type"] == "http" and path in self._open:
            known = [keys for keys in (self._keys, self._internal) if keys is not None]
            scope[_STRANGER] = all(_refuse(header, keys) is not None for keys in known)
            return None
        return _refuse(header, self._keys)


def is_stranger(scope: Scope) -> bool:
    """Whether an open path is asked by somebody without a valid key, where there are keys."""
    return bool(scope.get(_STRANGER, False))


def _refuse(header: str | None, keys: KeySet) -> Unauthenticated | None:
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        return Unauthenticated("no API key; send the header Authorization: Bearer <key>")
    if not keys.admits(key.strip()):
        return Unauthenticated("unknown API key; check it, or ask an administrator for a new one")
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
