"""A DNS name that stands for several replicas: one URL for each of its addresses, looked up again while we run.

A name with one address stays as it was configured (a load balancer, `localhost`). Of a name with addresses of both
families only IPv4 is used: the same replica usually has both.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

_log = logging.getLogger(__name__)
_EVERY_SECONDS = 5.0
_WAIT_SECONDS = 1.0

Lookup = Callable[[str, int], list[str]]


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, IPv4 ones where there are any; blocks for as long as the resolver does.

    Raises:
        OSError: the name cannot be resolved.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family = [{str(a[4][0]) for a in found if a[0] is kind} for kind in (socket.AF_INET, socket.AF_INET6)]
    return sorted(by_family[0] or by_family[1])


@dataclass(slots=True)
class _Known:
    urls: tuple[str, ...]
    at: float = -_EVERY_SECONDS
    asking: asyncio.Task[list[str]] | None = None


class DnsAddresses:
    """`Addresses` by the system's resolver; what was found last is kept while it does not answer.

    Args:
        host_names: gets, for the origin of each address, the name that the replica expects in `Host`.
        lookup: replaces the resolver in tests.
        every_seconds: between two lookups of a name.
    """

    def __init__(
        self, host_names: dict[str, str], *, lookup: Lookup = look_up, every_seconds: float = _EVERY_SECONDS
    ) -> None:
        self._host_names, self._lookup, self._every = host_names, lookup, every_seconds
        self._known: dict[str, _Known] = {}

    async def of(self, urls: Sequence[str]) -> tuple[str, ...]:
        """See `Addresses.of`; waits a second at most."""
        found = await asyncio.gather(*(self._one(url) for url in urls))
        return tuple(dict.fromkeys(url for each in found for url in each))

    async def _one(self, url: str) -> tuple[str, ...]:
        parsed = httpx.URL(url)
        known = self._known.setdefault(url, _Known((url,)))
        if _is_address(parsed.host) or time.monotonic() - known.at < self._every:
            return known.urls
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        if known.asking is None:  # a resolver that hangs holds one thread for each name, not one a second
            known.asking = asyncio.create_task(asyncio.to_thread(self._lookup, parsed.host, port), name="look up")
        done, _ = await asyncio.wait({known.asking}, timeout=_WAIT_SECONDS)
        if done:
            self._take(known, parsed, known.asking, port)
        return known.urls

    def _take(self, known: _Known, url: httpx.URL, asked: asyncio.Task[list[str]], port: int) -> None:
        known.asking, known.at = None, time.monotonic()
        error = asked.exception()
        if error is not None:
            _log.warning("a name cannot be looked up: %s", type(error).__name__, extra={"host": url.host})
            return
        before, addresses = known.urls, asked.result()
        several = tuple(_with_address(url, address, port) for address in addresses)
        known.urls = several if len(several) > 1 else (str(url).rstrip("/"),)
        for old in before:
            self._host_names.pop(origin_of(old), None)
        if len(several) > 1:
            self._host_names.update({origin_of(one): url.netloc.decode() for one in several})
        if known.urls != before:
            _log.info("a name has other addresses", extra={"host": url.host, "addresses": addresses})


@functools.lru_cache(4096)
def origin_of(url: str) -> str:
    """Scheme, address and port of a URL, of the few that there are."""
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode()}"


@functools.lru_cache(4096)
def host_of(name: str) -> str:
    """The host of what stands in `Host`."""
    return httpx.URL(f"//{name}").host


def _with_address(url: httpx.URL, address: str, port: int) -> str:
    return str(url.copy_with(host=address, port=port)).rstrip("/")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
