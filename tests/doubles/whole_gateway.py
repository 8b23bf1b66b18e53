"""The real gateway as a process of its own, before the doubles of everything behind it and a real Redis.

    python tests/doubles/whole_gateway.py [NAME=VALUE…]     prints its URL, and serves until it is told to stop

The names are settings of the gateway, without their prefix.

What is behind it are the doubles that the contract suites hold to the real services: `fake_vllm`, `fake_reward`; the
registry is a real one with a release without weights (`small_release`).
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

TESTS = Path(__file__).resolve().parents[1]
HELD = {"max_sequences": 96, "cache_tokens": 46_592}
if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


@dataclass(frozen=True)
class WholeGateway:
    """What runs.

    Attributes:
        url: the gateway's.
        control: faults of the policy's double, as JSON (`fake_vllm` says which).
        log: the gateway's standard error.
    """

    url: str
    control: Path
    log: Path

    def metric(self, name: str) -> float:
        """The sum of a metric's samples, whatever their labels; 0 when there are none."""
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines()
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in found)


@contextlib.contextmanager
def whole_gateway(
    folder: Path, port: int, settings: Mapping[str, str] | None = None, held: Mapping[str, int] = HELD
) -> Iterator[WholeGateway]:
    """Run everything until the block ends.

    Args:
        folder: an empty folder for registry, Redis and logs.
        port: the first of three consecutive free ones: gateway, policy's double, reward's double.
        settings: of the gateway, without their prefix.
        held: what the policy's slot says of its capacity.

    Raises:
        AssertionError: the gateway was not ready in time; with the last of its log.
    """
    from doubles.small_release import publish
    from doubles.valkey import ValkeyServer
    from doubles.whole_services import wait_until_ready

    (work := folder / "work").mkdir(parents=True)
    made = publish(folder / "registry", work)
    control, log = folder / "control.json", folder / "gateway.log"
    behind = {"policy": made["policy"], "reward": made["reward"], "port": port + 1, "control": str(control)}
    said = json.dumps(behind | {"held": dict(held)})
    (redis := folder / "redis").mkdir()
    with (
        ValkeyServer(redis) as valkey,
        _process([sys.executable, __file__, "behind", said], dict(os.environ), folder / "behind.log"),
        _process(
            [sys.executable, "-m", "acemath_gateway"],
            _environment(folder, port, valkey.url, settings or {}),
            log,
        ) as gateway,
    ):
        whole = WholeGateway(f"http://127.0.0.1:{port}", control, log)
        wait_until_ready(whole.url, gateway, whole.log)
        yield whole


def _environment(folder: Path, port: int, redis_url: str, settings: Mapping[str, str]) -> dict[str, str]:
    values = {
        "REGISTRY_ROOT": str(folder / "registry"),
        "PORT": str(port),
        "REDIS_URL": redis_url,
        "POLICY_URLS": f"http://127.0.0.1:{port + 1}",
        "REWARD_URLS": f"http://127.0.0.1:{port + 2}",
        "DRAIN_NOTICE_SECONDS": "0",
        **settings,
    }
    rest = {name: value for name, value in os.environ.items() if not name.startswith("ACEMATH_")}
    return rest | {f"ACEMATH_GATEWAY__{name}": value for name, value in values.items()}


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------- the process with both doubles


def _serve_behind(policy: str, reward: str, port: int, control: str, held: dict[str, int]) -> None:
    """Both doubles in one process: vLLM's, which also tells its slots as the agent would, and the reward service's."""
    import asyncio

    import uvicorn

    from doubles.fake_reward import FakeReward
    from doubles.fake_vllm_server import FakeServer, Tokens
    from doubles.small_release import CONTEXT_LENGTH

    vllm = FakeServer(policy, policy, CONTEXT_LENGTH, Tokens.of(Path("/nonexistent")), control=Path(control))
    app = vllm.app()
    app.add_route("/v1/slots", _slots_of(policy, f"http://127.0.0.1:{port}", held))
    scorer = FakeReward(reward, max_tokens=CONTEXT_LENGTH)
    configs = [
        uvicorn.Config(one, port=port + place, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        for place, one in enumerate((app, scorer.app))
    ]

    async def both() -> None:
        await asyncio.gather(*(uvicorn.Server(config).serve() for config in configs))

    asyncio.run(both())


def _slots_of(version: str, endpoint: str, held: dict[str, int]):
    from starlette.responses import JSONResponse

    async def slots(_: Request) -> Response:
        return JSONResponse([{"version": version, "state": "active", "endpoint": endpoint, "since": 0.0} | held])

    return slots


def main() -> None:
    """Be the doubles, or the whole."""
    sys.path.insert(0, str(TESTS))
    if sys.argv[1:2] == ["behind"]:
        _serve_behind(**json.loads(sys.argv[2]))
        return
    from loopback_ports import free_run

    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    settings = dict(given.split("=", 1) for given in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder, whole_gateway(Path(folder), free_run(3), settings) as whole:
        print(whole.url, flush=True)
        told.wait()


if __name__ == "__main__":
    main()
