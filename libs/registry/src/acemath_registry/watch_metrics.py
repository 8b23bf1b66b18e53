"""What a watch shows Prometheus of itself: that it still looks, and what it found.

`prometheus_client` is needed only here (the extra `watch`) and imported when it is used.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from acemath_registry.errors import InvalidRequest
from acemath_registry.watch import Look, Verdict

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Note = Callable[[Look], None]
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})")
_MOST: Final = 65535


class WatchKind(StrEnum):
    """Which of the two watches it is; a channel may have both."""

    RELEASE = "release"
    CANARY = "canary"


class WatchMetrics:
    """The figures of one watch, each verdict from 0 on, so that the first of its kind shows as a rise.

    Args:
        watch: what it is for.
        channel: that is looked at.
        registry: where they are registered.
        now: Unix time.
    """

    def __init__(
        self, watch: WatchKind, channel: str, registry: CollectorRegistry, now: Callable[[], float] = time.time
    ) -> None:
        from prometheus_client import Counter, Gauge  # noqa: PLC0415 - an extra

        self._of, self._now = (watch.value, channel), now
        labels = ("watch", "channel")
        self._looks = Counter(
            "acemath_watch_looks", "Looks, by what came of them.", (*labels, "verdict"), registry=registry
        )
        self._last = Gauge(
            "acemath_watch_last_look_timestamp_seconds", "Unix time of the last look.", labels, registry=registry
        )
        for verdict in Verdict:
            self._looks.labels(*self._of, verdict.value)

    def note(self, look: Look) -> None:
        """Count a look."""
        self._looks.labels(*self._of, look.verdict.value).inc()
        self._last.labels(*self._of).set(self._now())


@contextmanager
def serving(watch: WatchKind, channel: str, address: str | None) -> Iterator[Note]:
    """Show the figures on `http://HOST:PORT/metrics` while the block runs; yields what takes each look.

    Args:
        watch: what it is for.
        channel: that is looked at.
        address: `HOST:PORT`, port 0 for a free one; None shows them to nobody.

    Raises:
        InvalidRequest: the address is none or can not be listened on, or `prometheus_client` is not installed.
    """
    if address is None:
        yield lambda look: None
        return
    host, port = _parsed(address)
    try:
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - an extra
    except ImportError as error:
        said = "--metrics needs prometheus_client; install acemath-registry[watch]"
        raise InvalidRequest(said, param="metrics") from error
    registry = CollectorRegistry()
    metrics = WatchMetrics(watch, channel, registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        said = f"--metrics cannot listen on {address} ({error.strerror or error}); give another"
        raise InvalidRequest(said, param="metrics") from error
    try:
        yield metrics.note
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _parsed(address: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > _MOST:
        raise InvalidRequest(f"{address!r} is not HOST:PORT, e.g. 127.0.0.1:9109", param="metrics")
    return found["host"].strip("[]"), int(found["port"])
