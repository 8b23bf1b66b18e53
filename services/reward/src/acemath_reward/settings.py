"""What an operator can set, under `ACEMATH_REWARD__`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from acemath_core.settings import HttpServiceSettings, settings_config


class RewardSettings(HttpServiceSettings):
    """The settings of one reward service."""

    model_config = settings_config("ACEMATH_REWARD__")

    port: int = Field(8200, description="port to bind", ge=1, le=65535)
    cache_dir: Path = Field(description="private copies of checkpoints")

    spare_copies: int = Field(2, ge=0, description="private copies kept beside those of loaded versions")

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the device computes in it, else float32"
    )
    threads: int = Field(
        1, ge=1, le=256, description="threads of one CPU operator; more than the idle cores is slower by an order"
    )
    row_tile: int | None = Field(
        None, ge=16, le=8192, description="rows of one matrix product; None: 256 on a CPU; replicas must agree on it"
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

    live_candidates: int = Field(256, ge=1, le=4096, description="candidates of one live connection")
    live_content_bytes: int = Field(4 * 2**20, ge=1024, description="bytes of candidates on one live connection")
    live_idle_seconds: float = Field(30.0, gt=0, le=3600, description="a live connection on which nothing moves ends")
    live_deadline_seconds: float = Field(
        600.0, gt=0, le=3600, description="longest life of a live connection; its deadline can only shorten it"
    )

    stuck_seconds: float = Field(
        120.0, gt=0, le=3600, description="one batch, or one check of a new version, that takes longer: not ready"
    )
    poll_seconds: float = Field(1.0, ge=0.02, le=10, description="between two looks at the channel")
    load_attempts: int = Field(3, ge=1, description="failed attempts after which a new version is rejected")
    retry_max_seconds: float = Field(60.0, gt=0, description="longest pause between two attempts to load a version")
    drain_quiet_seconds: float = Field(5.0, ge=0, description="a version is dropped only after so long without a call")
    lease_record_max_age_seconds: float = Field(30.0, gt=0, description="an older gateway record counts as unknown")
    canary_tolerance: float = Field(
        0.05, gt=0, description="largest |difference| of a score from the manifest's, of the scores' spread"
    )
    drain_seconds: int = Field(60, ge=0, description="calls under way may take so long after SIGTERM")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.internal_key_file is None and not _is_loopback(self.host):
            raise ValueError("set internal_key_file: without a key, host must be a loopback address")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
