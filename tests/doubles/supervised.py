"""All services as processes that are started again when they die, as supervisord does: gateway, agent, reward, Redis.

Redis and the reward service's engine are real; below the agent runs vLLM's double.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from doubles.valkey import binary

TESTS = Path(__file__).resolve().parents[1]
PORTS = 8
START_SECONDS = 400.0


@dataclass
class Supervised:
    """What runs.

    Attributes:
        folder: registry, copies and logs.
        port: the first of `PORTS`: gateway, agent, reward, Redis, and four for vLLM's double.
    """

    folder: Path
    port: int
    _closing: bool = False
    _living: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def policy_url(self) -> str:
        """Of the agent."""
        return f"http://127.0.0.1:{self.port + 1}"

    @property
    def reward_url(self) -> str:
        """Of the reward service."""
        return f"http://127.0.0.1:{self.port + 2}"

    def _settings(self) -> dict[str, dict[str, str]]:
        port, soon = self.port, {"POLL_SECONDS": "0.1", "DRAIN_QUIET_SECONDS": "0.2"}
        below = {
            "VLLM_COMMAND": json.dumps([sys.executable, str(TESTS / "doubles" / "fake_vllm.py")]),
            "FIRST_VLLM_PORT": str(port + 4), "LAST_VLLM_PORT": str(port + 7), "SHUTDOWN_TIMEOUT_SECONDS": "1",
            "PROBE_SECONDS": "0.1", "IDLE_PROBE_SECONDS": "0.5", "RESTART_BACKOFF_MAX_SECONDS": "0.1",
        }  # fmt: skip
        urls = {"POLICY_URLS": self.policy_url, "REWARD_URLS": self.reward_url}
        urls["REDIS_URL"] = f"redis://127.0.0.1:{port + 3}/0"
        return {"gateway": urls, "policy": below | soon, "reward": soon}

    def commands(self) -> Iterator[tuple[str, list[str], Mapping[str, str]]]:
        """Name, command and environment of each service."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACEMATH_")}
        (redis := self.folder / "redis").mkdir(exist_ok=True)
        options = ("--port", str(self.port + 3), "--bind", "127.0.0.1", "--dir", str(redis), "--appendonly", "yes")
        yield "redis", [str(binary()), *options], inherited
        for place, (name, values) in enumerate(self._settings().items()):
            common = {"REGISTRY_ROOT": str(self.folder / "registry"), "PORT": str(self.port + place)}
            common |= {} if name == "gateway" else {"CACHE_DIR": str(self.folder / "cache" / name)}
            own = {f"ACEMATH_{name.upper()}__{key}": value for key, value in (common | values).items()}
            yield name, [sys.executable, "-m", f"acemath_{name}"], inherited | own

    def keep(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        """Run one, and again whenever it ends."""
        with (self.folder / f"{name}.log").open("ab") as log:
            while not self._closing:
                self._living[name] = process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                if self._closing:
                    process.terminate()
                process.wait()

    def wait_until_ready(self) -> None:
        """Raises `AssertionError` with the ends of the logs when the gateway is not ready in time."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError("\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log")))

    def close(self) -> None:
        """End all of them."""
        self._closing = True
        for process in list(self._living.values()):
            process.terminate()


@contextlib.contextmanager
def supervised(folder: Path, port: int) -> Iterator[Supervised]:
    """Run them until the block ends; a registry with a promoted release is in `folder/registry`."""
    stack = Supervised(folder, port)
    threads = [threading.Thread(target=stack.keep, args=command) for command in stack.commands()]
    for thread in threads:
        thread.start()
    try:
        stack.wait_until_ready()
        yield stack
    finally:
        stack.close()
        for thread in threads:
            thread.join(60)
