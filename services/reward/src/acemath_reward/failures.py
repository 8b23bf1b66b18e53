"""What `/openapi.json` says of the failures of every route that scores."""

from __future__ import annotations

from typing import Any

from acemath_core.wire import ErrorBody

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "the caller's mistake; `param` names the field, too long texts included"},
    401: {"model": ErrorBody, "description": "no key, or an unknown one"},
    409: {"model": ErrorBody, "description": "`model_not_served`: the message lists what is served"},
    413: {"model": ErrorBody, "description": "a text, a call or a body over a limit"},
    503: {"model": ErrorBody, "description": "`reward_overloaded`, `not_ready` or `draining`; see `Retry-After`"},
    504: {"model": ErrorBody, "description": "the deadline passed (`x-acemath-deadline-ms`)"},
}
