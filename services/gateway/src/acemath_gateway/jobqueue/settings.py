"""The settings of jobs; they are fields of the gateway's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from acemath_core.settings import ServiceSettings, read_key_file
from acemath_gateway.jobqueue.store import Rules

Hosts = Annotated[tuple[str, ...], NoDecode]
Seconds = Annotated[tuple[Annotated[float, Field(ge=0.1, le=86_400)], ...], NoDecode]


class JobSettings(ServiceSettings):
    """What can be set about jobs."""

    job_lines_at_once: int = Field(
        4, ge=0, le=1024, description="lines of jobs that this gateway works on at once; 0 leaves them to others"
    )
    job_max_lines: int = Field(10_000, ge=1, le=100_000, description="lines of one job")
    job_max_queued_lines: int = Field(
        50_000, ge=1, le=1_000_000, description="lines without a result, over all jobs; beyond it 503 jobs_full"
    )
    job_max_stored: int = Field(
        1000, ge=1, le=100_000, description="jobs kept at once, ended ones included; beyond it 503 jobs_full"
    )
    job_max_result_bytes: int = Field(
        64 * 1024 * 1024, ge=64 * 1024, description="results of one job; a line that would go beyond fails"
    )
    job_window_seconds: int = Field(
        86_400, ge=60, le=2_592_000, description="a job that has not ended after so long ends as expired"
    )
    job_kept_seconds: int = Field(
        86_400, ge=60, le=2_592_000, description="how long a job and its results are kept after its end"
    )
    job_idle_seconds: float = Field(
        15.0, ge=1, le=600, description="a line whose worker has said nothing for so long goes to another one"
    )
    webhook_hosts: Hosts = Field(
        (),
        description="who may be told of a job's end: host or host:port, a comma-separated or JSON list; empty: nobody",
    )
    webhook_secret_file: Path | None = Field(
        None,
        description="file (mode 0600) with whsec_ and a base64 key of 24 to 64 bytes; what messages are signed with",
    )
    webhook_inside: bool = Field(
        False, description="let listed hosts have addresses that are not public ones, and http:// URLs"
    )

    webhook_pauses_seconds: Seconds = Field(
        (5.0, 60.0, 300.0, 1800.0, 7200.0),
        max_length=20,
        description="between the attempts to deliver a webhook, a comma-separated or JSON list; then it has failed",
    )

    @field_validator("webhook_hosts", "webhook_pauses_seconds", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        listed = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
        return tuple(str(item).strip().lower() for item in listed if str(item).strip())

    def webhook_secret(self) -> SecretStr | None:
        """What messages are signed with; None when none is configured.

        Raises:
            SettingsError: the file cannot be read, is empty, or is readable by others.
        """
        return None if self.webhook_secret_file is None else read_key_file(self.webhook_secret_file)

    def job_rules(self) -> Rules:
        """The bounds of the queue."""
        return Rules(
            max_stored=self.job_max_stored,
            max_queued_lines=self.job_max_queued_lines,
            max_result_bytes=self.job_max_result_bytes,
            window_seconds=self.job_window_seconds,
            kept_seconds=self.job_kept_seconds,
            idle_seconds=self.job_idle_seconds,
        )
