"""One websocket to a reward service, from the handshake to its end; what goes wrong is one `CallFailed`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from acemath_core.deadline import Deadline
from acemath_gateway.adapters.addresses import origin_of
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.adapters.live_outbox import Outbox
from acemath_gateway.adapters.live_wire import message_of
from acemath_gateway.metrics import CallResult

_log = logging.getLogger(__name__)
_HANDSHAKE_SECONDS = 5.0
_SEND_SECONDS = 10.0  # a service that takes nothing for so long is stuck
_MAX_MESSAGE_BYTES = 256 * 1024
_PATH = "/v1/score/live"


class _Connect(connect):
    """Goes nowhere but where it was told to go."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def exchange(socket: ClientConnection, outbox: Outbox, hear: Callable[[str | bytes], None]) -> NoReturn:
    """Send what the outbox gets, hand every message to `hear`; what that raises ends it.

    Raises:
        CallFailed: always, unless it is cancelled: there is no connection any more.
    """
    writing = asyncio.create_task(_write(socket, outbox), name="write live pieces")
    try:
        async for message in socket:
            hear(message)
    except ConnectionClosed as error:
        raise CallFailed(CallResult.BROKEN, "cut the connection") from error
    finally:
        writing.cancel()
        await asyncio.wait({writing})
    raise CallFailed(CallResult.BROKEN, "closed the connection")


@contextlib.asynccontextmanager
async def connected(upstream: Upstream, endpoint: str, deadline: Deadline) -> AsyncIterator[ClientConnection]:
    """A connection until the end of the block, which closes it at once.

    Args:
        upstream: whose key is shown.
        endpoint: base URL of the service.
        deadline: of the handshake.

    Raises:
        CallFailed: it cannot be had.
    """
    with _translated():
        socket = await _Connect(
            **_address(upstream, endpoint),
            ssl=_tls() if endpoint.startswith("https://") else None,
            additional_headers=upstream.opening_headers(),
            user_agent_header=None,
            proxy=None,  # a proxy of the environment has no place between two services
            compression=None,
            open_timeout=min(_HANDSHAKE_SECONDS, deadline.remaining()),
            max_size=_MAX_MESSAGE_BYTES,
        )
    try:
        yield socket
    finally:
        socket.transport.abort()  # the service frees what is left; a closing handshake would keep the answer waiting
        await socket.wait_closed()


def _address(upstream: Upstream, endpoint: str) -> dict[str, Any]:
    """Where to connect, and the name that the service expects in `Host` (and shows in TLS)."""
    url = httpx.URL(endpoint)
    scheme = "wss" if url.scheme == "https" else "ws"
    name = upstream.host_names.get(origin_of(endpoint))
    path = url.path.rstrip("/") + _PATH
    if name is None:
        return {"uri": f"{scheme}://{url.netloc.decode()}{path}"}
    port = url.port or (443 if scheme == "wss" else 80)
    return {"uri": f"{scheme}://{name}{path}", "host": url.host, "port": port}


@functools.cache
def _tls() -> ssl.SSLContext:
    """The trust that the other calls have; made once, since it takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


async def _write(socket: ClientConnection, outbox: Outbox) -> None:
    try:
        while True:
            message = message_of(await outbox.take())  # all that came meanwhile: a message costs more than a frame
            async with asyncio.timeout(_SEND_SECONDS):
                await socket.send(message)
    except (ConnectionClosed, TimeoutError):
        _log.info("a live connection takes nothing more")
    finally:
        socket.transport.abort()  # whoever reads sees it


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except InvalidStatus as error:
        raise _refused(error.response.status_code) from error
    except TimeoutError as error:
        raise CallFailed(CallResult.TIMEOUT, "did not take a live connection in time") from error
    except (InvalidHandshake, InvalidURI, EOFError) as error:
        raise CallFailed(CallResult.BROKEN, f"broke the handshake ({type(error).__name__})") from error
    except OSError as error:
        raise CallFailed(CallResult.UNREACHABLE, "cannot be reached") from error


def _refused(status: int) -> CallFailed:
    if status in (401, 403):
        _log.error("a replica refuses a live connection: our internal key", extra={"status": status})
    result = CallResult.OVERLOADED if status in (429, 503) else CallResult.REFUSED
    return CallFailed(result, f"refused a live connection with status {status}")
