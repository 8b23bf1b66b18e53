"""What the local stack consists of, in the order in which it starts: each waits for what it needs."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass

from acemath_local.prometheus import config_path
from acemath_local.settings import LocalSettings

_PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Service:
    """One program of the supervisor.

    Attributes:
        name: its name in supervisord.conf and in the logs.
        doing: what it does while it starts, for the progress line.
        ready: returns an empty string when it can serve, else why not; answers within seconds.
        needs: services that must be ready before it starts.
        optional: the stack starts without it when it does not get ready.
    """

    name: str
    doing: str
    ready: Callable[[], str]
    needs: tuple[str, ...] = ()
    optional: bool = False


def local_services(settings: LocalSettings, *, prometheus: bool) -> list[Service]:
    """The stack for these settings, with or without its Prometheus (see `preflight.prometheus_off`)."""
    ports = settings.ports
    services = [
        Service("redis", "Redis protocol server", lambda: redis_answers(ports.redis)),
        Service("policy", "policy (vLLM)", lambda: http_ready(ports.policy)),
        Service("reward", "reward model", lambda: http_ready(ports.reward)),
        Service("gateway", "gateway", lambda: http_ready(ports.gateway), ("redis", "policy", "reward")),
    ]
    if prometheus:
        ready = lambda: prometheus_ready(settings)  # noqa: E731
        services.append(Service("prometheus", "Prometheus", ready, ("policy",), optional=True))
    return services


def http_ready(port: int, path: str = "/readyz") -> str:
    """Empty when `GET path` on loopback answers 200, else the reason in a few words."""
    try:
        status, text = http_get(port, path)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer yet ({type(error).__name__})"
    return "" if status == 200 else _reason(status, text)


def prometheus_ready(settings: LocalSettings) -> str:
    """Empty when the Prometheus at our port is ready and reads our configuration; another's may be ready there too."""
    port = settings.ports.prometheus
    try:
        _, text = http_get(port, "/api/v1/status/flags")
        config = str(json.loads(text)["data"]["config.file"])
    except (OSError, http.client.HTTPException) as error:
        return f"no answer yet ({type(error).__name__})"
    except (ValueError, KeyError, TypeError):
        return f"another program answers at port {port}"
    if config != str(config_path(settings)):
        return f"another Prometheus answers at port {port} (its configuration is {config})"
    return http_ready(port, "/-/ready")


def http_get(port: int, path: str, key: str | None = None) -> tuple[int, str]:
    """Status and body (64 KiB at most) of a GET on loopback, with `key` as its bearer key.

    Raises:
        OSError, http.client.HTTPException: no answer, or none that is HTTP.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read(65536).decode(errors="replace").strip()
    finally:
        connection.close()


def _reason(status: int, text: str) -> str:
    """The `reason` of a readiness document, else the status and how its body begins."""
    try:
        return str(json.loads(text)["reason"])
    except (ValueError, KeyError, TypeError):
        return f"{status} {text[:80]}"


def redis_answers(port: int) -> str:
    """Empty when a Redis-protocol server answers PING on loopback (it says LOADING while it replays its file)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PROBE_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError as error:
        return f"no answer yet ({type(error).__name__})"
    return "" if answer.startswith(b"+PONG") else answer.decode(errors="replace").strip()
