"""`Idempotency-Key`: a request that is sent again gets the answer of the first one instead of being worked on again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from prometheus_client import Counter
from starlette.requests import Request
from starlette.responses import Response

from acemath_core.deadline import Deadline
from acemath_core.errors import Conflict, InvalidRequest, Unavailable
from acemath_core.wire import Wire
from acemath_gateway.door_metrics import KeyOutcome
from acemath_gateway.ports import IdempotencyStore, Stored

HEADER = "Idempotency-Key"
_KEY = re.compile(r"^[\x21-\x7e]{1,255}$")


class Answer(Response):
    """A JSON answer, and the release that made it in a header.

    Attributes:
        release: see above.
        whole: nothing about it is degraded: asked again, the same would be no worse.
    """

    media_type = "application/json"

    def __init__(
        self, body: bytes, *, release: str, whole: bool = False, more: Mapping[str, str] | None = None
    ) -> None:
        self.release, self.whole = release, whole
        super().__init__(body, headers={"x-acemath-release": release, **(more or {})})


def idempotency_key(request: Request, *, stream: bool) -> str | None:
    """The caller's key, or None.

    Raises:
        InvalidRequest: the key is malformed, or the answer is to be streamed.
    """
    key, *more = request.headers.getlist(HEADER) or (None,)
    if key is None:
        return None
    if more:
        raise InvalidRequest(f"{HEADER}: there is more than one; send one", param=HEADER)
    if stream:
        raise InvalidRequest(f"{HEADER} cannot be combined with stream=true; leave one of them out", param=HEADER)
    if not _KEY.match(key):
        raise InvalidRequest(f"{HEADER}: 1 to 255 printable ASCII characters without spaces", param=HEADER)
    return key


@dataclass(frozen=True, slots=True)
class Once:
    """Works once for each key.

    Attributes:
        store: where answers are kept.
        results: counts what keys did, by `KeyOutcome`.
    """

    store: IdempotencyStore
    results: Counter

    async def answer(
        self, request: Request, key: str | None, body: Wire, deadline: Deadline, work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer of `work`, or the one that an earlier request with the same key got.

        A failure is not kept: a retry works again.

        Raises:
            Conflict: (`idempotency_conflict`) the key was used with another body.
            Unavailable: (`idempotency_unavailable`) the store is away.
            DeadlineExceeded: another request with the key did not finish in time.
        """
        if key is None:
            return await work()
        place, digest = _scoped(request, key), fingerprint(request, body)
        stored = await self._begin(place, digest, deadline)
        if stored is not None:
            return Answer(stored.body, release=_release_in(stored.body), more={"idempotent-replayed": "true"})
        try:
            answer = await work()
        except BaseException:
            await self.store.abandon(place, digest)
            raise
        await self.store.finish(place, digest, Stored(answer.status_code, bytes(answer.body)))
        return answer

    async def _begin(self, place: str, digest: str, deadline: Deadline) -> Stored | None:
        try:
            stored = await self.store.begin(place, digest, deadline)
        except (Conflict, Unavailable) as error:
            self.results.labels(KeyOutcome.CONFLICT if isinstance(error, Conflict) else KeyOutcome.UNAVAILABLE).inc()
            raise
        self.results.labels(KeyOutcome.WORKED if stored is None else KeyOutcome.REPLAYED).inc()
        return stored


def _scoped(request: Request, key: str) -> str:
    """The key under its caller: nobody reads an answer by guessing another's key."""
    return hashlib.sha256(f"{caller_of(request)}\0{key}".encode()).hexdigest()


def caller_of(request: Request) -> str:
    """Whose request it is, as a header says that was checked before; a secret."""
    return request.headers.get("authorization", "")


def fingerprint(request: Request, body: Wire) -> str:
    """Of the route and the validated body with its defaults, so that the spelling of the JSON does not matter."""
    canonical = json.dumps(body.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{request.url.path}\0{canonical}".encode()).hexdigest()


def _release_in(body: bytes) -> str:
    fields = json.loads(body)
    return str(fields.get("release") or fields.get("system_fingerprint"))
