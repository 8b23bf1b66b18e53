"""Serve an application until SIGTERM: stop accepting, finish what is in flight, close."""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp


def run(app: ASGIApp, *, host: str, port: int, drain_seconds: int = 60) -> None:
    """Serve `app` in this process until SIGINT or SIGTERM.

    Args:
        app: the application.
        host: address to bind.
        port: port to bind.
        drain_seconds: how long requests in flight may still take after the signal; then they are cancelled.
    """
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,  # logging is configured by the entry point
        access_log=False,  # the default one prints paths and query strings
        server_header=False,
        timeout_keep_alive=75,  # longer than the 60 s after which common proxies reuse a connection
        timeout_graceful_shutdown=drain_seconds,
    )
