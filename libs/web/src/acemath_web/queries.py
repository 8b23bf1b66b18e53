"""What a route does not know in a query is refused: `?streem=true` would else be answered as if it were not there."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from urllib.parse import parse_qsl

from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from acemath_core.errors import ErrorCode, InvalidRequest

_MAX_NAME_CHARS = 128


class StrictQueryRoute(APIRoute):
    """A route whose query has what its function takes, each once, and nothing else.

    Not for probes and metrics: who asks those adds what others take (`name[]`), and must not be paged for it.
    """

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(parameter.alias for parameter in get_flat_dependant(self.dependant).query_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, if its query is one for this route.

        Raises:
            InvalidRequest: a parameter is unknown, or there twice.
        """
        query = scope.get("query_string", b"")
        if query and scope["method"] in (self.methods or ()):
            _check(query.decode("latin-1"), self._known)
        await super().handle(scope, receive, send)


def _check(query: str, known: frozenset[str]) -> None:
    given = Counter(name for name, _ in parse_qsl(query, keep_blank_values=True))
    for name, count in given.items():
        shown = "".join(char if char.isprintable() else "�" for char in name[:_MAX_NAME_CHARS])
        if name not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "there are none here"
            raise InvalidRequest(
                f"unknown query parameter {shown!r}; remove it ({takes})",
                param=shown,
                code=ErrorCode.UNSUPPORTED_PARAMETER,
            )
        if count > 1:
            raise InvalidRequest(f"the query parameter {shown!r} stands there {count} times; send it once", param=shown)
