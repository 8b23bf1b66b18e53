"""Calls to a running stack: one POST, repeated while the service says that it is full, until a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from acemath_core.deadline import Deadline

_BUSY = frozenset({429, 503})
_DEFAULT_PAUSE_S = 2.0
_MAX_PAUSE_S = 30.0


class CallError(Exception):
    """A call failed for good; the message names the service and what it said."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        """`status` is the HTTP status, None when no answer came; `code` is the error's own, where it has one."""
        super().__init__(message)
        self.status = status
        self.code = code or (f"http_{status}" if status is not None else "unreachable")


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service is, who asks, and how long a call may take with all its repetitions (seconds)."""

    url: str
    key: SecretStr | None = None
    patience_seconds: float = 900.0

    def client(self, connections: int) -> httpx.AsyncClient:
        """Return a client for at most `connections` calls at once; the caller closes it."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key else {},
            timeout=httpx.Timeout(self.patience_seconds, connect=10.0),
            limits=httpx.Limits(max_connections=connections),
            trust_env=False,
        )


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any], patience_seconds: float) -> dict[str, Any]:
    """Return the JSON answer to a POST. A 429, a 503 and a broken connection are tried again after `Retry-After`.

    Raises:
        CallError: another error answer, or no good one within `patience_seconds`.
    """
    deadline = Deadline.after(patience_seconds)
    while True:
        try:
            response = await client.post(path, json=body)
            if response.status_code not in _BUSY:
                return _document(response)
            failure, pause = _failure(response), _retry_after(response)
        except httpx.TransportError as error:
            failure, pause = CallError(f"{client.base_url}: {error or type(error).__name__}"), _DEFAULT_PAUSE_S
        if deadline.remaining() <= pause:
            raise failure
        await asyncio.sleep(pause)


async def run_workers(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `count` copies of `work` at once; the first error stops them all and is raised as it is."""
    workers = [asyncio.create_task(work()) for _ in range(count)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _document(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise _failure(response)
    document: dict[str, Any] = response.json()
    return document


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers["retry-after"]), 0.1), _MAX_PAUSE_S)
    except (KeyError, ValueError):
        return _DEFAULT_PAUSE_S


def _failure(response: httpx.Response) -> CallError:
    try:
        error = response.json()["error"]
        said, code = error["message"], error.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        said, code = response.text[:200], None
    message = f"{response.url} answered {response.status_code}: {said}"
    return CallError(message, response.status_code, code if isinstance(code, str) else None)
