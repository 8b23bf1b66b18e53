"""What an operator can set, under `ACEMATH_REWARD__`."""

from __future__ import annotations

import ipaddress
import os
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from acemath_core.processes.vllm import COMMAND, OWNED_FLAGS, owned_among, passed_on
from acemath_core.settings import settings_config
from acemath_registry.following import SwapSettings

_OWNED_FLAGS = OWNED_FLAGS | {"--runner", "--convert", "--task", "--max-num-batched-tokens"}


class EngineKind(StrEnum):
    """What computes the scores."""

    TORCH = "torch"
    VLLM = "vllm"


class RewardSettings(SwapSettings):
    """The settings of one reward service."""

    model_config = settings_config("ACEMATH_REWARD__")

    port: int = Field(8200, description="port to bind", ge=1, le=65535)
    cache_dir: Path = Field(description="private copies of checkpoints")

    spare_copies: int = Field(2, ge=0, description="private copies kept beside those of loaded versions")

    engine: EngineKind = Field(
        EngineKind.TORCH, description="vllm: servers of vLLM below this service, for what one device does not hold"
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the device computes in it, else float32"
    )
    threads: int = Field(
        1, ge=1, le=256, description="on a CPU: of every pass, no score depends on it; engine=vllm: of a server"
    )
    row_tile: int | None = Field(
        None, ge=16, le=8192, description="rows of one matrix product; None: 256 on a CPU; replicas must agree on it"
    )

    tensor_parallel_size: int = Field(1, ge=1, description="engine=vllm: devices that share a checkpoint")
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="engine=vllm: share of a GPU's memory for one version; two in a swap, unless resource_preserving",
    )
    cpu_kvcache_space: int | None = Field(None, ge=1, description="engine=vllm on a CPU: GiB of its cache")
    enforce_eager: bool = Field(False, description="engine=vllm: no compilation, starts sooner")
    extra_args: tuple[str, ...] = Field((), description="engine=vllm: further arguments of vLLM; JSON list")
    vllm_command: tuple[str, ...] = Field(
        COMMAND, description="engine=vllm: how a server is started; JSON list", min_length=1
    )
    first_vllm_port: int = Field(8210, ge=1, le=65535, description="engine=vllm: loopback ports of its servers")
    last_vllm_port: int = Field(8219, ge=1, le=65535)
    start_timeout_seconds: float = Field(
        1800.0, gt=0, le=7200, description="engine=vllm: from the start of a server to its first score"
    )
    probe_seconds: float = Field(
        5.0, ge=0.05, le=60, description="engine=vllm: between two looks at a server, and the longest wait of one"
    )

    batch_tokens: int = Field(
        2048, ge=1, description="tokens of one forward pass; a quarter more if it is the last, a longer sequence alone"
    )
    max_queue_tokens: int = Field(262_144, ge=1, description="tokens that may wait; beyond: 503 reward_overloaded")
    max_queue_items: int = Field(4096, ge=1, description="candidates that may wait; beyond: 503 reward_overloaded")
    max_calls: int = Field(512, ge=1, description="calls that may be under way; beyond: 503 reward_overloaded")
    max_text_chars: int = Field(131_072, ge=1, description="characters of one text; beyond: 413")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="bytes of one body; beyond: 413")
    tokenizer_threads: int = Field(1, ge=1, le=64)
    default_deadline_seconds: float = Field(
        120.0, gt=0, le=3600, description="longest wait of a call; a caller's x-acemath-deadline-ms can only shorten it"
    )

    live_candidates: int = Field(256, ge=1, le=4096, description="candidates of one live job")
    live_content_bytes: int = Field(4 * 2**20, ge=1024, description="bytes of candidates of one live job")
    live_idle_seconds: float = Field(30.0, gt=0, le=3600, description="a live connection on which nothing moves ends")
    live_deadline_seconds: float = Field(
        600.0, gt=0, le=3600, description="longest life of a live job; its deadline can only shorten it"
    )

    stuck_seconds: float = Field(
        120.0, gt=0, le=3600, description="one batch, or one check of a new version, that takes longer: not ready"
    )
    lost_seconds: float = Field(
        300.0,
        ge=0,
        le=86_400,
        description="after so long at one batch, or without a batch that succeeds, the process ends, to be started "
        "again by what runs it; 0: never",
    )
    poll_seconds: float = Field(1.0, ge=0.02, le=10, description="between two looks at the channel")
    load_attempts: int = Field(3, ge=1, description="failed attempts after which a new version is rejected")
    retry_max_seconds: float = Field(60.0, gt=0, description="longest pause between two attempts to load a version")
    drain_quiet_seconds: float = Field(5.0, ge=0, description="a version is dropped only after so long without a call")
    canary_tolerance: float = Field(
        0.05, gt=0, description="largest |difference| of a score from the manifest's, of the scores' spread"
    )
    drain_seconds: int = Field(60, ge=0, description="calls under way may take so long after SIGTERM")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.internal_key_file is None and not _is_loopback(self.host):
            raise ValueError("set internal_key_file: without a key, host must be a loopback address")
        return self

    @model_validator(mode="after")
    def _of_one_engine(self) -> Self:
        """Nothing is accepted and ignored."""
        pooled = self.engine is EngineKind.VLLM
        others = _OF_VLLM if not pooled else _OF_TORCH if self.device == "cpu" else _OF_TORCH | _OF_CPU
        ignored = sorted(self.model_fields_set & others)
        if ignored:
            where = f"engine={self.engine} on {self.device}"
            raise ValueError(f"{where} has no {', '.join(ignored)}; unset it, or choose another engine or device")
        if self.engine is EngineKind.VLLM:
            self._check_vllm()
        return self

    def _check_vllm(self) -> None:
        if ":" in self.device:
            raise ValueError("device: engine=vllm takes cpu or cuda; CUDA_VISIBLE_DEVICES says which GPUs it sees")
        if self.last_vllm_port <= self.first_vllm_port:
            raise ValueError("last_vllm_port must be above first_vllm_port: two servers run during a swap")
        if self.first_vllm_port <= self.port <= self.last_vllm_port:
            raise ValueError("port must lie outside first_vllm_port … last_vllm_port")
        taken = owned_among(self.extra_args, _OWNED_FLAGS)
        if taken:
            raise ValueError(f"extra_args may not hold {', '.join(taken)}; the service sets them, or has a setting")

    @property
    def omp_num_threads(self) -> int | None:
        """Threads of a vLLM server on a CPU; None on GPUs, where it binds its own."""
        return self.threads if self.device == "cpu" else None


_OF_TORCH = frozenset({"row_tile"})
_OF_CPU = frozenset({"threads", "cpu_kvcache_space"})
_OF_VLLM = frozenset(
    {
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "cpu_kvcache_space",
        "enforce_eager",
        "extra_args",
        "vllm_command",
        "first_vllm_port",
        "last_vllm_port",
        "start_timeout_seconds",
        "probe_seconds",
    }
)


def inherited_environment() -> dict[str, str]:
    """The service's own environment as vLLM may see it."""
    return passed_on(os.environ)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
