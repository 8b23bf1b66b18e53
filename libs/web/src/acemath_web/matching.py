"""Which routes a request's path has, also for a request that was refused before it came to one."""

from __future__ import annotations

from starlette.routing import BaseRoute, Match
from starlette.types import Scope


def routes_at(scope: Scope) -> list[BaseRoute]:
    """The application's routes at this path, whatever their methods; empty where there is no application yet."""
    app = scope.get("app")
    return [route for route in app.routes if route.matches(scope)[0] is not Match.NONE] if app else []
