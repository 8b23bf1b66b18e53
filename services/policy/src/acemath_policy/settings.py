"""What an operator can set, under `ACEMATH_POLICY__`; vLLM's own arguments keep vLLM's names."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from acemath_core.processes.vllm import COMMAND, OWNED_FLAGS, owned_among, passed_on
from acemath_core.settings import settings_config
from acemath_registry.following import SwapSettings

_OWNED_FLAGS = OWNED_FLAGS | {"--fingerprint-mode", "--fingerprint-value", "--generation-config", "--max-num-seqs"}


class PolicySettings(SwapSettings):
    """The settings of one policy agent."""

    model_config = settings_config("ACEMATH_POLICY__")

    port: int = Field(8100, description="port of the agent itself", ge=1, le=65535)
    cache_dir: Path = Field(description="private copies of checkpoints, and vLLM's own caches")

    spare_copies: int = Field(2, ge=0, description="private copies kept beside those in use, for a quick way back")

    bind: str = Field("127.0.0.1", description="address on which vLLM servers listen")
    advertise_host: str = Field("127.0.0.1", description="host name or address that others are told for them")
    first_vllm_port: int = Field(8110, ge=1, le=65535)
    last_vllm_port: int = Field(8119, ge=1, le=65535)

    vllm_command: tuple[str, ...] = Field(COMMAND, description="how a vLLM server is started; JSON list", min_length=1)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = Field(
        None, description="None: bfloat16; float32 on a CPU without bfloat16 arithmetic; auto is vLLM's, as stored"
    )
    max_model_len: int | None = Field(None, ge=16, description="None: what the checkpoint says")
    max_num_seqs: int = Field(256, ge=1, description="sequences in a server's batch; gateways go by it")
    enforce_eager: bool = Field(False, description="no compilation: starts sooner and needs no C++ compiler")
    tensor_parallel_size: int = Field(1, ge=1)
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a GPU's memory for one server; two run in a swap, unless resource_preserving",
    )
    cpu_kvcache_space: int | None = Field(None, ge=1, description="GiB of KV cache of a CPU server")
    omp_num_threads: int | None = Field(None, ge=1, description="threads of a CPU server; None: vLLM binds its own")
    extra_args: tuple[str, ...] = Field((), description="further vLLM arguments; JSON list")

    shutdown_timeout_seconds: int = Field(60, ge=0, description="vLLM finishes what it has for so long after TERM")
    start_timeout_seconds: float = Field(900.0, gt=0, description="from starting vLLM to its first healthy answer")
    start_attempts: int = Field(3, ge=1, description="failed starts after which a new version is rejected")
    restart_backoff_max_seconds: float = Field(60.0, gt=0)
    poll_seconds: float = Field(1.0, ge=0.05, le=10, description="between two looks at the channel and the processes")
    probe_seconds: float = Field(1.0, ge=0.05, description="between two looks at a server's health and counters")
    idle_probe_seconds: float = Field(10.0, gt=0, description="an idle server makes one token at least this often")
    probe_timeout_seconds: float = Field(10.0, gt=0)
    progress_seconds: float = Field(30.0, gt=0, description="ready = a token was made within this time")
    stall_restart_seconds: float = Field(
        120.0, gt=0, description="a server that makes no token for so long is restarted"
    )
    drain_quiet_seconds: float = Field(5.0, ge=0, description="nothing running or waiting for so long before a stop")
    warm_timeout_seconds: float = Field(180.0, gt=0, description="first generation and canary together")
    canary_mean_tolerance: float = Field(0.1, gt=0, description="mean |difference| of log-probabilities, nats")
    canary_max_tolerance: float = Field(1.5, gt=0, description="largest |difference| of log-probabilities, nats")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.last_vllm_port <= self.first_vllm_port:
            raise ValueError("last_vllm_port must be above first_vllm_port: two servers run during a swap")
        if self.first_vllm_port <= self.port <= self.last_vllm_port:
            raise ValueError("port must lie outside first_vllm_port … last_vllm_port")
        if self.internal_key_file is None and not (is_loopback(self.host) and is_loopback(self.bind)):
            raise ValueError("set internal_key_file: without a key, host and bind must be loopback addresses")
        taken = owned_among(self.extra_args, _OWNED_FLAGS)
        if taken:
            raise ValueError(f"extra_args may not hold {', '.join(taken)}; the agent sets them, or there is a setting")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def inherited_environment() -> dict[str, str]:
    """The agent's own environment as vLLM may see it."""
    return passed_on(os.environ)
