"""Serve an application until SIGTERM: stop accepting, finish what is in flight, close."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import uvicorn
from starlette.types import ASGIApp

from acemath_web.connections import ConnectionLimits, guarded_protocol, within_file_limit
from acemath_web.draining import Drain, DrainingServer, nothing_to_drain

_STARTUP_FAILURE = 3  # uvicorn's exit status


def run(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    drain_seconds: int = 60,
    limits: ConnectionLimits | None = None,
    drain: Drain = nothing_to_drain,
    max_message_bytes: int = 2**20,
    keeps: bool = False,
) -> None:
    """Serve `app` in this process until SIGINT or SIGTERM.

    Args:
        app: the application.
        host: address to bind.
        port: port to bind.
        drain_seconds: how long requests in flight may still take after the signal; then they are cancelled.
        drain: brings the application's long-lived connections to their end when the signal comes.
        max_message_bytes: a longer websocket message ends its connection.
        keeps: everything that start makes lives as long as the process; not where models come and go.
        limits: what callers may take; as many connections of it as the limit on open files allows.
    """
    limits = limits or ConnectionLimits()
    limits = replace(limits, connections=within_file_limit(limits.connections))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=guarded_protocol(limits),
        ws_max_size=max_message_bytes,
        log_config=None,  # logging is configured by the entry point
        access_log=False,  # the default one prints paths and query strings
        server_header=False,
        timeout_keep_alive=75,  # longer than the 60 s after which common proxies reuse a connection
        timeout_graceful_shutdown=drain_seconds,
    )
    server = DrainingServer(config, drain, keeps=keeps)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(_STARTUP_FAILURE)
