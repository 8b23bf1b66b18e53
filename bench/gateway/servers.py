"""The gateways that are compared: how each is started on one core, before the same stand-in, and how it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from acemath_local.redis_server import server_binary
from bench.gateway.load import Target

ROOT = Path(__file__).resolve().parents[2]
DOUBLES = ROOT / "tests" / "doubles"
HOST = "127.0.0.1"
START_SECONDS = 180
END_SECONDS = 15
PORTS = 8
"""Consecutive ports of one run: upstream, its reward half, Redis, and the server under test."""


class ServerFailed(Exception):
    """A server did not start, or does not answer; with the last of its log."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every server gets.

    Attributes:
        folder: for logs, the registry, Redis.
        first_port: the first of `PORTS` free ones.
        release: ids of the release in the registry: release, policy, reward.
        server_core: where the server under test runs.
        load_core: where everything else does.
        litellm: python of the environment with LiteLLM; None leaves it out.
        optillm: python of the environment with optillm; None leaves it out.
    """

    folder: Path
    first_port: int
    release: dict[str, str]
    server_core: int
    load_core: int
    litellm: Path | None
    optillm: Path | None

    @property
    def upstream(self) -> str:
        """The stand-in's URL; its reward half is on the next port."""
        return f"http://{HOST}:{self.first_port}"

    @property
    def port(self) -> int:
        """The server under test's."""
        return self.first_port + 3


@dataclass(frozen=True, slots=True)
class Leg:
    """One system.

    Attributes:
        name: in the tables.
        does: in words, what it does with n candidates.
        start: runs it for the length of the block; gives the process, None for what runs anyway.
        target: what to ask for n candidates.
        per_n: whether n is a setting of the server, so that it is started again for each.
    """

    name: str
    does: str
    start: Callable[[Bench, int], contextlib.AbstractContextManager[subprocess.Popen[bytes] | None]]
    target: Callable[[Bench, int], Target]
    per_n: bool = False


def legs(bench: Bench) -> dict[str, Leg]:
    """All that can be run here, by name."""
    found = [
        Leg("direct", "the stand-in itself, n choices", _nothing, _direct),
        Leg("by-hand", "n choices, n scores, the best, and nothing else", _by_hand, _to_by_hand),
        Leg("acemath", "n candidates, n scores while they are written, the best", _acemath(), _to_acemath),
        Leg("acemath-posted", "the same, scores are posted", _acemath(LIVE_SCORING="false"), _to_acemath),
    ]
    if bench.litellm:
        found.append(Leg("litellm", "passes n choices on", _litellm, _to_litellm))
    if bench.optillm:
        found.append(Leg("optillm-none", "passes n choices on", _optillm("none"), _to_optillm))
        bon = "n candidates, n marks by the same model one after the other, the best"
        found.append(Leg("optillm-bon", bon, _optillm("bon"), _to_optillm_bon, per_n=True))
    return {leg.name: leg for leg in found}


# ------------------------------------------------------------------------------------------------------ what is asked


def _direct(bench: Bench, n: int) -> Target:
    return Target(HOST, bench.first_port, "/v1/chat/completions", {"n": n, "max_tokens": 64}, {})


def _to_acemath(bench: Bench, n: int) -> Target:
    fields: dict[str, object] = {"best_of": n, "max_tokens": 64, "temperature": 0.7}
    return Target(HOST, bench.port, "/v1/chat/completions", fields, {})


def _to_by_hand(bench: Bench, n: int) -> Target:
    return Target(HOST, bench.port, "/v1/chat/completions", {"n": n, "max_tokens": 64, "temperature": 0.7}, {})


def _to_litellm(bench: Bench, n: int) -> Target:
    key = {"authorization": f"Bearer {_LITELLM_KEY}"}
    return Target(HOST, bench.port, "/v1/chat/completions", {"n": n, "max_tokens": 64, "temperature": 0.7}, key)


def _to_optillm(bench: Bench, n: int) -> Target:
    return Target(HOST, bench.port, "/v1/chat/completions", {"n": n, "max_tokens": 64, "temperature": 0.7}, {})


def _to_optillm_bon(bench: Bench, n: int) -> Target:
    return Target(HOST, bench.port, "/v1/chat/completions", {"max_tokens": 64}, {})


# ------------------------------------------------------------------------------------------------ how they are started


_LITELLM_KEY = f"sk-{secrets.token_hex(8)}"


@contextlib.contextmanager
def surroundings(bench: Bench) -> Iterator[None]:
    """The stand-in, and the Redis that our gateway shares things by; on the other core."""
    ids = ["--policy", bench.release["policy"], "--reward", bench.release["reward"]]
    command = [sys.executable, str(DOUBLES / "instant_upstream.py"), "--port", str(bench.first_port), *ids]
    (data := bench.folder / "redis").mkdir()
    redis = [str(server_binary(None)), "--port", str(bench.first_port + 2), "--bind", HOST, "--dir", str(data)]
    with (
        _process(bench, "upstream", command, bench.load_core, {}),
        _process(bench, "redis", [*redis, "--appendonly", "yes", "--save", ""], bench.load_core, {}),
    ):
        _wait_for(f"{bench.upstream}/v1/models", bench.folder / "upstream.log")
        yield


@contextlib.contextmanager
def _nothing(bench: Bench, n: int) -> Iterator[None]:
    yield None


@contextlib.contextmanager
def _by_hand(bench: Bench, n: int) -> Iterator[subprocess.Popen[bytes]]:
    behind = ["--policy", bench.upstream, "--reward", f"http://{HOST}:{bench.first_port + 1}"]
    command = [sys.executable, "-m", "bench.gateway.by_hand", "--port", str(bench.port), *behind]
    with _process(bench, "by_hand", command, bench.server_core, {}) as process:
        _wait_for(f"http://{HOST}:{bench.port}/", bench.folder / "by_hand.log")
        yield process


def _acemath(**changed: str) -> Callable[[Bench, int], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]:
    """The gateway with its defaults, but for limits that would refuse what is offered, and what is changed."""

    @contextlib.contextmanager
    def start(bench: Bench, n: int) -> Iterator[subprocess.Popen[bytes]]:
        settings = _settings(bench) | changed
        environment = {f"ACEMATH_GATEWAY__{name}": value for name, value in settings.items()}
        command = [sys.executable, "-m", "acemath_gateway"]
        with _process(bench, "acemath", command, bench.server_core, environment) as process:
            _wait_for(f"http://{HOST}:{bench.port}/readyz", bench.folder / "acemath.log")
            yield process

    return start


def _settings(bench: Bench) -> dict[str, str]:
    return {
        "REGISTRY_ROOT": str(bench.folder / "registry"),
        "PORT": str(bench.port),
        "REDIS_URL": f"redis://{HOST}:{bench.first_port + 2}/0",
        "POLICY_URLS": bench.upstream,
        "REWARD_URLS": f"http://{HOST}:{bench.first_port + 1}",
        "MAX_SEQUENCES_IN_FLIGHT": "16384",
        "LOCAL_MAX_SEQUENCES": "16384",
        "MAX_QUEUED_REQUESTS": "4096",
        "DRAIN_NOTICE_SECONDS": "0",
        "DRAIN_SECONDS": "1",
    }


@contextlib.contextmanager
def _litellm(bench: Bench, n: int) -> Iterator[subprocess.Popen[bytes]]:
    """The proxy with one worker, its model map local, no database, no telemetry."""
    assert bench.litellm is not None
    behind = {"model": "openai/acemath", "api_base": f"{bench.upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "acemath", "litellm_params": behind}],
        "general_settings": {"master_key": _LITELLM_KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    path = bench.folder / "litellm.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    program = bench.litellm.with_name("litellm")
    command = [str(program), "--config", str(path), "--host", HOST, "--port", str(bench.port), "--num_workers", "1"]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    with _process(bench, "litellm", command, bench.server_core, environment) as process:
        _wait_for(f"http://{HOST}:{bench.port}/health/liveliness", bench.folder / "litellm.log")
        yield process


def _optillm(approach: str) -> Callable[[Bench, int], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]:
    """optillm's own server, without reading the certificates of all authorities at every request."""

    @contextlib.contextmanager
    def start(bench: Bench, n: int) -> Iterator[subprocess.Popen[bytes]]:
        assert bench.optillm is not None
        flags = ["--approach", approach, "--best-of-n", str(n), "--model", "acemath", "--log", "warning"]
        there = ["--host", HOST, "--port", str(bench.port), "--no-ssl-verify", "--base-url", f"{bench.upstream}/v1"]
        command = [str(bench.optillm), "-m", "optillm.server", *flags, *there]
        with _process(bench, "optillm", command, bench.server_core, {"OPENAI_API_KEY": "none"}) as process:
            _wait_for(f"http://{HOST}:{bench.port}/health", bench.folder / "optillm.log")
            yield process

    return start


@contextlib.contextmanager
def _process(
    bench: Bench, name: str, command: list[str], core: int, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own on one core; at the end of the block nothing of it is left."""
    rest = {k: v for k, v in os.environ.items() if not k.startswith(("ACEMATH_", "OPENAI_", "LITELLM_"))}
    with (bench.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            env=rest | environment,
            stdout=log,
            stderr=log,
            cwd=bench.folder if name in ("litellm", "optillm") else ROOT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_SECONDS)


def _wait_for(url: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise ServerFailed(f"{url} does not answer; the end of {log.name}: {log.read_text(errors='replace')[-1500:]}")
