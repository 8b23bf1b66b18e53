"""The real reward service, or the real policy agent, as a process of its own on tiny random checkpoints.

    python tests/doubles/whole_services.py reward|policy [NAME=VALUE…]    prints its URL, and serves until told to stop

The names are settings of the service, without their prefix. The reward service computes with its own engine; below the
agent runs the double of vLLM that the contract suites hold to the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

TESTS = Path(__file__).resolve().parents[1]
START_SECONDS = 180.0
PORTS = 3
"""In a row: the service, and two for what runs below it."""


@contextlib.contextmanager
def whole_service(name: str, folder: Path, port: int, settings: Mapping[str, str]) -> Iterator[str]:
    """Run it until the block ends; gives its base URL.

    Args:
        name: reward or policy.
        folder: an empty folder for registry, copies and log.
        port: the first of `PORTS` consecutive free ones.
        settings: of the service, without their prefix.

    Raises:
        AssertionError: it was not ready in time; with the last of its log.
    """
    made = [sys.executable, str(TESTS / "contract" / "make_release.py"), str(folder / "registry")]
    subprocess.run(made, check=True, stdout=subprocess.PIPE, timeout=START_SECONDS)
    values = {"REGISTRY_ROOT": str(folder / "registry"), "CACHE_DIR": str(folder / "cache"), "PORT": str(port)}
    values |= _below(port) if name == "policy" else {}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACEMATH_")}
    environment |= {f"ACEMATH_{name.upper()}__{key}": value for key, value in {**values, **settings}.items()}
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", f"acemath_{name}"], env=environment, stdout=out, stderr=out)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _below(port: int) -> dict[str, str]:
    """Servers of vLLM's double, which the agent looks at often."""
    command = [sys.executable, str(TESTS / "doubles" / "fake_vllm.py")]
    return {
        "VLLM_COMMAND": json.dumps(command),
        "FIRST_VLLM_PORT": str(port + 1),
        "LAST_VLLM_PORT": str(port + 2),
        "SHUTDOWN_TIMEOUT_SECONDS": "1",
        "PROBE_SECONDS": "0.2",
        "IDLE_PROBE_SECONDS": "1",
    }


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises `AssertionError` with the end of its log when the process ends, or is not ready in time."""
    until, seen = time.monotonic() + START_SECONDS, "nothing"
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            reply = httpx.get(f"{url}/readyz", trust_env=False, verify=False)
            if reply.status_code == 200:
                return
            seen = reply.text
        time.sleep(0.1)
    raise AssertionError(f"{url} is not ready: {seen}; its log: {log.read_text(errors='replace')[-2000:]}")


def main() -> None:
    """Be the whole, in the foreground."""
    sys.path.insert(0, str(TESTS))
    from loopback_ports import free_run

    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    name, settings = sys.argv[1], dict(given.split("=", 1) for given in sys.argv[2:])
    with (
        tempfile.TemporaryDirectory() as folder,
        whole_service(name, Path(folder), free_run(PORTS), settings) as url,
    ):
        print(url, flush=True)
        told.wait()


if __name__ == "__main__":
    main()
