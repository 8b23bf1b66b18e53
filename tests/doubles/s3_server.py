"""An S3-compatible server in this process, and the environment of somebody who may use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Rule = Callable[[App, dict[str, Any], Callable[..., Any]], Iterable[bytes] | None]


class Faults:
    """In front of the server: `rule` may answer a request itself, or change it; None lets it through.

    Attributes:
        rule: asked of each request.
        seen: method and path of each request.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self.rule: Rule | None = None
        self.seen: list[tuple[str, str]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        answer = None if self.rule is None else self.rule(self._app, environ, start_response)
        return self._app(environ, start_response) if answer is None else answer


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # so that it answers "Expect: 100-continue", for which a client waits a second

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[tuple[str, Faults]]:
    """The server's URL, and what stands in front of it; one request at a time.

    moto looks at a condition first and writes then, unlocked.
    """
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=False, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(url: str) -> dict[str, str]:
    """What somebody who may use the server has in the environment."""
    return {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url, "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
