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

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Probes and scrapes carry no key; that these ports are reachable only inside is the deployment's part."""


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
    """Answers 401 to a request without a valid `Authorization: Bearer` key, except on the open paths."""

    def __init__(self, app: ASGIApp, keys: KeySet, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self._app, self._keys, self._open = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in self._open or not self._keys:
            await self._app(scope, receive, send)
            return
        refusal = self._refuse(header_of(scope, "authorization"))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _refuse(self, header: str | None) -> Unauthenticated | None:
        scheme, _, key = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return Unauthenticated("no API key; send the header Authorization: Bearer <key>")
        if not self._keys.admits(key.strip()):
            return Unauthenticated("unknown API key; check it, or ask an administrator for a new one")
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
