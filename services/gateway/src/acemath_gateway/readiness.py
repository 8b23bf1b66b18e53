"""Whether traffic should be sent here: a release is served and we are not stopping. Asks nobody."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from acemath_web.health import Readiness

_log = logging.getLogger(__name__)


class ReadyState:
    """What `/readyz` answers with: what the release tracker last found, unless we are starting or stopping."""

    def __init__(self) -> None:
        self._tracked: Callable[[], Readiness] = lambda: Readiness(False, "starting: nothing is open yet")
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the gateway was told to stop."""
        return self._draining

    def opened(self, tracked: Callable[[], Readiness]) -> None:
        """The parts are there; `tracked` gives the cached verdict on the release that new requests get."""
        self._tracked = tracked

    def drain(self) -> None:
        """From now on no new traffic should come; what is here is finished."""
        self._draining = True

    def verdict(self) -> Readiness:
        """The verdict as of now."""
        tracked = self._tracked()
        if self._draining:
            return Readiness(False, "draining: this gateway is being stopped", tracked.details)
        return tracked


@contextmanager
def drain_on_signal(state: ReadyState, notice_seconds: float) -> Iterator[None]:
    """On SIGTERM or SIGINT say so on `/readyz` first, and after `notice_seconds` let the server stop.

    Load balancers need that time to take us out; connections that they still send meanwhile are served. A second signal
    does not wait. Only for the main thread, after the server has put its own handlers in place.
    """
    loop = asyncio.get_running_loop()
    servers: dict[int, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        if state.draining:
            servers[number](number, frame)
            return
        state.drain()
        _log.info("draining", extra={"notice_seconds": notice_seconds})
        loop.call_soon_threadsafe(loop.call_later, notice_seconds, servers[number], number, frame)

    for which in (signal.SIGTERM, signal.SIGINT):
        servers[which] = signal.signal(which, on_signal)
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)
