"""What every stock vLLM server is told, whichever service runs it: its environment, its place, what stays shut.

vLLM is never imported. Flags and variables are those of vLLM 0.32 (`vllm/entrypoints/launchers/cli_args.py`,
`vllm/envs.py`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

COMMAND = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry")
"""How a server is started, where nothing else is set; `vllm serve` runs the same module."""

SIDE = Path(__file__).with_name("vllm_side")
"""Folder of what vLLM loads of ours, on its `PYTHONPATH`."""

# Nothing of a request's text in the log; no pages that nobody asked for.
SILENT = ("--disable-uvicorn-access-log", "--no-enable-log-requests", "--max-log-len", "0", "--disable-fastapi-docs")

OWNED_FLAGS = frozenset(
    {
        "--model",
        "--served-model-name",
        "--host",
        "--port",
        "--uds",
        "--api-key",
        "--middleware",
        "--shutdown-timeout",
        "--trust-remote-code",
        "--enable-log-requests",
        "--enable-log-outputs",
        "--dtype",
        "--max-model-len",
        "--enforce-eager",
        "--tensor-parallel-size",
        "--gpu-memory-utilization",
    }
)
"""Arguments that no operator may add: the service sets them, or has a setting for them."""

_NOT_PASSED_ON = (
    "ACEMATH_",
    "AWS_",  # credentials of the registry's bucket
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_",
    "VLLM_API_KEY",
    "VLLM_PLUGINS",
    "VLLM_DEBUG_",  # one of them logs every answer
)
"""Variables that vLLM must not inherit: our settings and credentials, and switches that open what must stay shut."""

# A thread of GNU OpenMP spins while it waits for its team, by default for milliseconds. A token of a small model has a
# hundred waits, each shorter than falling asleep, so not to spin costs a third of the speed; but where another process
# needs the core, spinning that long makes a token where one thread makes ten. This many turns last some microseconds.
_SPIN_TURNS = "5000"


class NoFreePort(Exception):
    """No port of a range can be bound; the message names the range."""


class VllmPlace(Protocol):
    """The settings of a service, as far as the environment of its vLLM servers depends on them."""

    @property
    def cache_dir(self) -> Path:
        """Parent of vLLM's own caches."""
        ...

    @property
    def enforce_eager(self) -> bool:
        """No compilation."""
        ...

    @property
    def cpu_kvcache_space(self) -> int | None:
        """GiB of KV cache of a CPU server."""
        ...

    @property
    def omp_num_threads(self) -> int | None:
        """Threads of a CPU server; None: vLLM binds its own."""
        ...

    @property
    def tensor_parallel_size(self) -> int:
        """Workers that share a model."""
        ...


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What vLLM may see of a service's environment: paths and devices, nothing of ours, no switch of vLLM's own."""
    return {name: value for name, value in environment.items() if not name.startswith(_NOT_PASSED_ON)}


def owned_among(arguments: Sequence[str], owned: Collection[str]) -> list[str]:
    """Those of the `owned` flags that are among the arguments, sorted."""
    return sorted(set(owned) & {argument.partition("=")[0] for argument in arguments})


def environment(place: VllmPlace, inherited: Mapping[str, str], key: SecretStr | None) -> dict[str, str]:
    """The environment of a vLLM server: what it may inherit, no network, no telemetry, no plugin, the key."""
    made = {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_PLUGINS": "",
        "VLLM_CACHE_ROOT": str(place.cache_dir / "vllm"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(SIDE), inherited.get("PYTHONPATH")))),
    }
    if key is not None:
        made["VLLM_API_KEY"] = key.get_secret_value()
    if place.enforce_eager:
        # `--enforce-eager` does not cover every @torch.compile: asking for log-probabilities still compiles one, which
        # takes 15 s at the first such request and needs a C++ compiler.
        made["TORCHDYNAMO_DISABLE"] = "1"
    if place.cpu_kvcache_space is not None:
        made["VLLM_CPU_KVCACHE_SPACE"] = str(place.cpu_kvcache_space)
    if place.omp_num_threads is not None:
        made |= _threads(place.omp_num_threads)
        if place.tensor_parallel_size == 1:
            # The one worker runs inside the engine's process. In one of its own the two would wait for each other in a
            # loop that keeps a core busy; vLLM wants that only to bind OpenMP's threads, which is off here. The engine
            # still has a process of its own: a server's always has, whatever this variable's name says.
            made["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return made


def free_port(bind: str, ports: range, taken: Collection[int]) -> int:
    """The first port that can be bound.

    Raises:
        NoFreePort: none can.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    for port in ports:
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM binds it
            if port not in taken:
                probe.bind((bind, port))
                return port
    raise NoFreePort(f"no free port for vLLM in {ports.start}–{ports.stop - 1}")


def _threads(count: int) -> dict[str, str]:
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(count), "GOMP_SPINCOUNT": _SPIN_TURNS}
