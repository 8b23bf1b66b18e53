"""One websocket to a reward service, from the handshake to its end; what goes wrong is one `CallFailed`.

aiohttp's, as all calls between services are: a message costs it a third of the processor time that the `websockets`
library takes, which checks in Python what aiohttp reads in C.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NoReturn

import aiohttp

from acemath_core.deadline import Deadline
from acemath_gateway.adapters.addresses import host_of, origin_of
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.adapters.live_outbox import Outbox
from acemath_gateway.adapters.live_wire import message_of
from acemath_gateway.adapters.transport import Redirected, Socket
from acemath_gateway.metrics import CallResult

_log = logging.getLogger(__name__)
_HANDSHAKE_SECONDS = 5.0
_SEND_SECONDS = 10.0  # a service that takes nothing for so long is stuck
_MAX_MESSAGE_BYTES = 256 * 1024
_PATH = "/v1/score/live"
_TOLD = frozenset({aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY})
_CUT = 1006  # no closing frame came (RFC 6455, section 7.4.1)


async def exchange(socket: Socket, outbox: Outbox, hear: Callable[[str | bytes], None]) -> NoReturn:
    """Send what the outbox gets, hand every message to `hear`; what that raises ends it.

    Raises:
        CallFailed: always, unless it is cancelled: there is no connection any more.
    """
    writing = asyncio.create_task(_write(socket, outbox), name="write live pieces")
    try:
        async for message in socket:
            if message.type not in _TOLD:
                raise CallFailed(CallResult.BROKEN, "broke the protocol of websockets")
            hear(message.data)
    finally:
        writing.cancel()
        await asyncio.wait({writing})
    said = "cut the connection" if socket.close_code in (None, _CUT) else "closed the connection"
    raise CallFailed(CallResult.BROKEN, said)


@contextlib.asynccontextmanager
async def connected(upstream: Upstream, endpoint: str, deadline: Deadline) -> AsyncIterator[Socket]:
    """A connection until the end of the block, which closes it at once.

    Args:
        upstream: whose key is shown.
        endpoint: base URL of the service.
        deadline: of the handshake.

    Raises:
        CallFailed: it cannot be had.
    """
    headers, name = upstream.opening_headers(), upstream.host_names.get(origin_of(endpoint))
    if name is not None:
        headers["host"] = name
    with _translated():
        async with asyncio.timeout(min(_HANDSHAKE_SECONDS, deadline.remaining())):
            socket = await upstream.transport.websocket(
                endpoint.rstrip("/") + _PATH,
                headers,
                max_message_bytes=_MAX_MESSAGE_BYTES,
                server_name=host_of(name) if name else None,
            )
    try:
        yield socket
    finally:
        socket.abort()  # the service frees what is left; a closing handshake would keep the answer waiting


async def _write(socket: Socket, outbox: Outbox) -> None:
    clock = asyncio.get_running_loop()
    try:
        while True:
            await outbox.filled()
            await asyncio.sleep(
                0
            )  # what is put in the same turn of the loop goes along: a message costs more than a frame
            if frames := outbox.take():
                stuck = clock.call_later(_SEND_SECONDS, socket.abort)
                try:
                    await socket.send_str(message_of(frames))
                finally:
                    stuck.cancel()
    except (aiohttp.ClientError, OSError):
        _log.info("a live connection takes nothing more")
    finally:
        socket.abort()  # whoever reads sees it


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except aiohttp.WSServerHandshakeError as error:
        raise _refused(error.status) from error
    except Redirected as error:
        raise _refused(error.status) from error
    except aiohttp.ClientConnectorError as error:
        raise CallFailed(CallResult.UNREACHABLE, "cannot be reached") from error
    except TimeoutError as error:
        raise CallFailed(CallResult.TIMEOUT, "did not take a live connection in time") from error
    except aiohttp.ClientError as error:
        raise CallFailed(CallResult.BROKEN, f"broke the handshake ({type(error).__name__})") from error
    except OSError as error:
        raise CallFailed(CallResult.UNREACHABLE, "cannot be reached") from error


def _refused(status: int) -> CallFailed:
    if status == 101:  # of what else it said, something was no handshake
        return CallFailed(CallResult.BROKEN, "broke the handshake")
    if status in (401, 403):
        _log.error("a replica refuses a live connection: our internal key", extra={"status": status})
    result = CallResult.OVERLOADED if status in (429, 503) else CallResult.REFUSED
    return CallFailed(result, f"refused a live connection with status {status}")
