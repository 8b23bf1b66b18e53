"""Webhooks over HTTP, to public addresses only: a name that points inside the network is not followed there.

A name is resolved once; every address that it has must be public, and the connection goes to one of exactly those, so
that a name which answers otherwise the second time (DNS rebinding) changes nothing. The certificate is checked against
the name. Redirects are not followed, proxies not asked, and nothing of the answer is read but its status.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx

Resolve = Callable[[str, int], Awaitable[tuple[str, ...]]]

_TOTAL_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
_MAX_ADDRESSES = 3  # that are tried
_NAT64 = IPv6Network("64:ff9b::/96")


class HttpWebhooks:
    """`WebhookSender` over HTTP.

    Args:
        inside: allow addresses that are not public.
        resolve: name and port to addresses; the system's resolver when left out.
        tls: checks certificates; the system's authorities when left out.
    """

    def __init__(self, *, inside: bool, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._inside, self._resolve = inside, resolve or _addresses_of
        self._tls = tls

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> str | None:
        """See `WebhookSender.send`."""
        try:
            async with asyncio.timeout(_TOTAL_SECONDS):
                return await self._send(httpx.URL(url), headers, body)
        except TimeoutError:
            return f"no answer within {_TOTAL_SECONDS:g} seconds"
        except (httpx.InvalidURL, UnicodeError):
            return "the URL cannot be read"

    async def _send(self, url: httpx.URL, headers: dict[str, str], body: bytes) -> str | None:
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await self._resolve(url.host, port)
        except OSError:
            return "its host has no address"
        if not self._inside and not all(is_public(address) for address in addresses):
            return "its host has an address that is not public; nothing was sent"
        problem: str | None = "its host has no address"
        for address in addresses[:_MAX_ADDRESSES]:
            problem = await self._post(url, address, headers, body)
            if problem != _UNREACHED:
                return problem
        return problem

    async def _post(self, url: httpx.URL, address: str, headers: dict[str, str], body: bytes) -> str | None:
        timeout = httpx.Timeout(_TOTAL_SECONDS, connect=_CONNECT_SECONDS)
        verify = self._tls or ssl.create_default_context()
        own = {"host": url.netloc.decode("ascii"), "content-type": "application/json", "user-agent": "acemath-webhook"}
        try:
            async with (
                httpx.AsyncClient(verify=verify, timeout=timeout, trust_env=False, follow_redirects=False) as client,
                client.stream(
                    "POST",
                    url.copy_with(host=address),
                    headers=headers | own,
                    content=body,
                    extensions={"sni_hostname": url.host},
                ) as answer,
            ):
                return _problem_in(answer.status_code)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return _UNREACHED
        except httpx.HTTPError as error:
            return f"the connection failed: {type(error).__name__}"


_UNREACHED = "no connection, or a certificate that is not the host's"


def is_public(text: str) -> bool:
    """Whether an address is one that anybody on the internet may have; also for what is wrapped in it."""
    address = ip_address(text.partition("%")[0])
    inner = _wrapped_in(address)
    if inner is not None:
        return is_public(str(inner))
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _wrapped_in(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _problem_in(status: int) -> str | None:
    if httpx.codes.is_success(status):
        return None
    if httpx.codes.is_redirect(status):
        return f"HTTP {status}: redirects are not followed"
    return f"HTTP {status}"


async def _addresses_of(host: str, port: int) -> tuple[str, ...]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
