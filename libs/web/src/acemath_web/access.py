"""One line in the log for each request, when it has ended: what came of it, never what was said in it."""

from __future__ import annotations

import logging

from acemath_web.context import Fact

_log = logging.getLogger(__name__)
PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics", "/v1/slots", "/v1/targets"})
"""Asked every few seconds by machines; their lines are for debugging."""


def log_request(
    *, method: str, route: str, status: int, seconds: float, code: str | None, facts: dict[str, Fact]
) -> None:
    """Write the line; the formatter adds the request id.

    Args:
        method: one of a few.
        route: the template, without any value of a caller.
        status: as the caller saw it; 499 when it left.
        seconds: from the request's head to the end of its answer.
        code: of the error that was answered.
        facts: what the service noted (`context.note_facts`).
    """
    line: dict[str, object] = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
    if code is not None:
        line["code"] = code
    _log.log(logging.DEBUG if route in PROBES else logging.INFO, "request", extra={**facts, **line})
