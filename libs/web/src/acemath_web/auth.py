"""Who asks: bearer keys behind a port, and the one place where a request without a valid one is refused.

    Authorization: Bearer <key>  ──►  Callers.find  ──►  Identity in the request's scope  ──►  identity_of(scope)

`KeySet` is the port for a few keys that are known at the start; several may be valid at once, so that they can be
rotated. What a caller may do is the service's own affair: it reads `Caller.scopes`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from acemath_core.errors import ServiceError, Unauthenticated
from acemath_web.context import header_of
from acemath_web.errors import error_response

PROBE_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Asked by machines that carry no key; what they answer without one tells nothing but well or not."""
METRICS_PATH = "/metrics"
_IDENTITY = "acemath.identity"
_STRANGER = "acemath.stranger"
_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1; before a websocket is accepted the server makes it an HTTP 403


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a valid key.

    Attributes:
        id: names the key in logs and records; it is no secret and not the key.
        scopes: what the key opens, in the service's own words.
    """

    id: str
    scopes: frozenset[str] = frozenset()


class Callers(Protocol):
    """Those who may call."""

    @property
    def required(self) -> bool:
        """Whether nobody may call without a key."""
        ...

    async def find(self, key: str) -> Caller | None:
        """Whose key this is; None when nobody has it, or nobody has it any more.

        Raises:
            Unavailable: it cannot be known now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What the key of a request came to.

    Attributes:
        caller: whose key it is; None when the request has no valid one.
        refusal: why there is no caller; None when there is one.
        required: whether nobody may call without a key.
    """

    caller: Caller | None
    refusal: ServiceError | None
    required: bool


class KeySet:
    """The keys that are valid now; holds digests only.

    Args:
        keys: the keys; none admit everybody.
        caller: who shows one of them.
    """

    def __init__(self, keys: Iterable[SecretStr], caller: Caller | None = None) -> None:
        self._digests = [digest_of(key.get_secret_value()) for key in keys]
        self._caller = caller or Caller("key")

    def __bool__(self) -> bool:
        """Whether any key is configured."""
        return bool(self._digests)

    @property
    def required(self) -> bool:
        """See `Callers.required`."""
        return bool(self)

    def admits(self, key: str) -> bool:
        """Whether the key is one of the set; takes the same time whichever it is, and whether it is."""
        digest, found = digest_of(key), False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found

    async def find(self, key: str) -> Caller | None:
        """See `Callers.find`."""
        return self._caller if self.admits(key) else None


class BearerMiddleware:
    """Notes who asks, and refuses what needs a valid `Authorization: Bearer` key and has none.

    A request is refused with 401 (503 when keys cannot be looked up now), a websocket before it is accepted.

    Args:
        app: the application.
        callers: those who may call.
        internal_keys: those of the internal network, asked for by `/metrics` where callers have keys, since such a port
            may be published. None: only the internal network reaches this port, and `/metrics` needs no key.
        open_paths: paths that need no key, besides the probes.
    """

    def __init__(
        self, app: ASGIApp, callers: Callers, internal_keys: KeySet | None = None, open_paths: Collection[str] = ()
    ) -> None:
        self._app, self._callers, self._internal = app, callers, internal_keys
        self._open = PROBE_PATHS | frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        refusal = await self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal.message})
        else:
            await error_response(refusal)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> ServiceError | None:
        header, path = header_of(scope, "authorization"), scope["path"]
        http, required = scope["type"] == "http", self._callers.required
        if http and path == METRICS_PATH:
            internal = self._internal if required else None
            return None if internal is None else _internal_refusal(header, internal)
        identity = scope[_IDENTITY] = await self._identify(header, required)
        if not required:
            return None
        if http and path in self._open:
            scope[_STRANGER] = identity.caller is None and self._outside(header)
            return None
        return identity.refusal

    async def _identify(self, header: str | None, required: bool) -> Identity:
        """Who shows the key; whatever keeps us from knowing is kept for those who must know."""
        key = _bearer(header)
        if key is None:
            return Identity(None, _no_key(), required)
        try:
            caller = await self._callers.find(key)
        except ServiceError as error:
            return Identity(None, error, required)
        return Identity(caller, None if caller else _unknown_key(), required)

    def _outside(self, header: str | None) -> bool:
        return self._internal is None or _internal_refusal(header, self._internal) is not None


def identity_of(scope: Scope) -> Identity:
    """Who asks; the request has passed `BearerMiddleware`."""
    identity = scope[_IDENTITY]
    assert isinstance(identity, Identity)
    return identity


def is_stranger(scope: Scope) -> bool:
    """Whether an open path is asked by somebody without a valid key, where there are keys."""
    return bool(scope.get(_STRANGER, False))


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key, 32 bytes: what is kept and compared in its place."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _internal_refusal(header: str | None, keys: KeySet) -> Unauthenticated | None:
    key = _bearer(header)
    if key is None:
        return _no_key()
    return None if keys.admits(key) else _unknown_key()


def _bearer(header: str | None) -> str | None:
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def _no_key() -> Unauthenticated:
    return Unauthenticated("no API key; send the header Authorization: Bearer <key>")


def _unknown_key() -> Unauthenticated:
    return Unauthenticated("unknown API key; check it, or ask an administrator for a new one")
