"""What this replica tells the registry about itself; best effort, since the mount may be read-only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from acemath_core.errors import ServiceError
from acemath_registry.following.slow import SlowCalls
from acemath_registry.registry import Registry

_log = logging.getLogger(__name__)
_REPEAT_SECONDS = 10.0  # a sign of life between two changes


class StatusFile:
    """Writes `status/<service>/<instance>.json`: on every change, and from time to time without one.

    Args:
        registry: where to write.
        service: name of the service.
        instance: name of this replica.
        on_error: told whenever a write fails.
    """

    def __init__(self, registry: Registry, service: str, instance: str, on_error: Callable[[], None]) -> None:
        self._registry, self._service, self._instance, self._on_error = registry, service, instance, on_error
        self._at, self._told = 0.0, dict[str, object]()
        self._calls = SlowCalls()
        self._problem: str | None = None

    async def write(self, document: Mapping[str, object]) -> None:
        """Write `document` with the time (`at`, Unix seconds) if there is something to tell; gives up after 2 s."""
        now = time.time()
        if self._told == document and now - self._at < _REPEAT_SECONDS:
            return
        self._at, self._told = now, dict(document)
        try:
            told = {**document, "at": now}
            await self._calls.result(lambda: self._registry.write_status(self._service, self._instance, told))
            self._problem = None
        except ServiceError as error:
            self._on_error()
            if error.message != self._problem:
                _log.warning("the status file was not written: %s", error.message)
            self._problem = error.message
