"""Whose key is it? Those of files are known from the start; the others are looked up, and remembered for a moment.

| the store is | a key that was seen lately                                         | any other key made by us |
|--------------|--------------------------------------------------------------------|--------------------------|
| there        | valid for `fresh_seconds` after it was read, then read again        | read                     |
| away         | valid for `grace_seconds` after it was read; one with admin is not | 503 `keys_unavailable`   |

So a revoked key is refused by every gateway after `fresh_seconds`, by the one that revoked it at once, and by a gateway
that is cut off from the store after `grace_seconds`.
"""

from __future__ import annotations

import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from acemath_core.admin import KEY_ID_PATTERN, KeyScope
from acemath_core.errors import ErrorCode, Unauthenticated, Unavailable
from acemath_gateway.keys.records import KeyCaller, id_of, may_be_one
from acemath_gateway.keys.store import KeyStore
from acemath_web.auth import Caller, KeySet, digest_of

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Seen:
    """A valid key as it was read."""

    digest: bytes
    caller: KeyCaller
    at: float


class KeyBook:
    """`acemath_web.auth.Callers` of the gateway.

    Args:
        fixed: the keys of files.
        required: whether nobody may call without a key.
        fresh_seconds: how long what was read of a key holds.
        grace_seconds: how long it holds while the store is away.
    """

    def __init__(self, fixed: Sequence[KeySet], *, required: bool, fresh_seconds: float, grace_seconds: float) -> None:
        self._fixed, self._required = tuple(fixed), required
        self._fresh_seconds, self._grace_seconds = fresh_seconds, grace_seconds
        self._store: KeyStore | None = None
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # the latest used last

    @property
    def required(self) -> bool:
        """See `Callers.required`."""
        return self._required

    def opened(self, store: KeyStore) -> None:
        """The store is there: called when the application starts."""
        self._store = store

    async def find(self, key: str) -> Caller | None:
        """See `Callers.find`.

        Raises:
            Unavailable: (`keys_unavailable`) the key may be one, and the store is away.
        """
        for keys in self._fixed:
            caller = await keys.find(key)
            if caller is not None:
                return caller
        return await self._look_up(digest_of(key)) if may_be_one(key) else None

    async def with_id(self, key_id: str) -> KeyCaller | None:
        """Who has the key with this id; None for somebody without a record: the caller of a file, or anybody.

        Raises:
            Unauthenticated: the key was revoked.
            Unavailable: (`keys_unavailable`) the store is away, and the key was not seen lately.
        """
        if not re.fullmatch(KEY_ID_PATTERN, key_id):
            return None
        seen = await self._seen_now(key_id)
        if seen is None:
            raise Unauthenticated("the API key that asked for this was revoked; nothing more is done for it")
        return seen.caller

    def forget(self, key_id: str) -> None:
        """Read the key again at its next use: it was changed or revoked."""
        self._seen.pop(key_id, None)

    async def _look_up(self, digest: bytes) -> KeyCaller | None:
        key_id = id_of(digest)
        seen = await self._seen_now(key_id)
        # An id is a part of the digest, and the digest says nothing of the key; comparing it in constant time is free.
        return seen.caller if seen is not None and hmac.compare_digest(seen.digest, digest) else None

    async def _seen_now(self, key_id: str) -> _Seen | None:
        seen = self._seen.get(key_id)
        if seen is not None and self._age(seen) < self._fresh_seconds:
            return seen
        try:
            return await self._read(key_id)
        except Unavailable:
            if seen is not None and self._age(seen) < self._grace_seconds and KeyScope.ADMIN not in seen.caller.scopes:
                return seen
            raise

    async def _read(self, key_id: str) -> _Seen | None:
        if self._store is None:
            raise Unavailable("keys cannot be looked up yet", code=ErrorCode.KEYS_UNAVAILABLE, retry_after=2.0)
        asked = time.monotonic()  # before the call: it may have been revoked while the answer was on its way
        record = await self._store.read(key_id)
        if record is None:
            self.forget(key_id)
            return None
        seen = _Seen(bytes.fromhex(record.digest), record.caller(), asked)
        self._remember(key_id, seen)
        return seen

    def _remember(self, key_id: str, seen: _Seen) -> None:
        self._seen[key_id] = seen
        self._seen.move_to_end(key_id)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    @staticmethod
    def _age(seen: _Seen) -> float:
        return time.monotonic() - seen.at
