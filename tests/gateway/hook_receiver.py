"""A server that is told of the ends of jobs, and the secret that messages are signed with."""

import asyncio
import base64
import ssl
from contextlib import asynccontextmanager

KEY = bytes(range(32))


SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


class Receiver:
    """A server that answers each request with the next of `answers`, the last one for ever."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers) or [b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"]
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    @asynccontextmanager
    async def open(self, tls: ssl.SSLContext | None = None):
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=tls)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://hooks.test:{server.sockets[0].getsockname()[1]}/done"
        async with server:
            yield self


def answer(status: int, *more: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", "content-length: 0", "connection: close", *more, "", ""]).encode()


async def to_loopback(host: str, port: int) -> tuple[str, ...]:
    assert host == "hooks.test"
    return ("127.0.0.1",)
