"""The gateway's settings: `ACEMATH_GATEWAY__<NAME>`, read once by `__main__`."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from acemath_core.calibration import Calibration, read_calibration
from acemath_core.settings import HttpServiceSettings, SettingsError, settings_config
from acemath_core.wire import MAX_CANDIDATES
from acemath_gateway.jobqueue.settings import JobSettings
from acemath_gateway.places import MOST_PLACES
from acemath_gateway.ports import MAX_CACHE_SECONDS
from acemath_gateway.rejection import AFTER_TOKENS, KEEP, RejectRules
from acemath_gateway.stopping import CONFIDENCE

Urls = Annotated[tuple[str, ...], NoDecode]


class GatewaySettings(JobSettings, HttpServiceSettings):
    """Everything that can be set about a gateway; every field has its unit in its name or description."""

    model_config = settings_config("ACEMATH_GATEWAY__")

    port: int = Field(8080, description="port to bind", ge=1, le=65535)
    policy_urls: Urls = Field(
        ("http://127.0.0.1:8100",),
        min_length=1,
        description="policy agents: a comma-separated or JSON list; a name means all of its addresses",
    )
    reward_urls: Urls = Field(
        ("http://127.0.0.1:8200",),
        min_length=1,
        description="reward services: a comma-separated or JSON list; a name means all of its addresses",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6380/0"), description="what gateways share; may hold a password"
    )
    redis_timeout_seconds: float = Field(
        1.0, gt=0, le=5, description="longest wait for one answer of Redis, for a connection to it included"
    )

    max_sequences_in_flight: int | None = Field(
        None,
        ge=1,
        le=MOST_PLACES,
        description="candidates being made at once, over all gateways; none = as many as the policy replicas' batches "
        "and caches hold, by what they say of themselves and the length that candidates have here",
    )
    local_max_sequences: int | None = Field(
        None,
        ge=1,
        le=MOST_PLACES,
        description="the same of this gateway alone while Redis is away; a larger request runs alone; none = as many",
    )
    max_queued_requests: int = Field(
        64, ge=0, le=4096, description="requests that may wait for a place in this gateway"
    )
    max_queue_seconds: float = Field(30.0, ge=0.5, le=600, description="longest wait for a place; then 503 overloaded")
    queue_patience_seconds: float = Field(
        10.0, ge=0.1, le=600, description="once in so long, who waits longest is next whatever its priority"
    )
    batch_share: float = Field(
        0.75, gt=0, le=1, description="part of the places that priority batch may fill; a larger request runs alone"
    )

    max_problem_chars: int = Field(32_768, ge=1, description="longest problem, or all messages of a chat together")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="a longer body is answered with 413")
    default_deadline_seconds: float = Field(120.0, gt=0, le=3600, description="deadline of a request that names none")
    max_deadline_seconds: float = Field(
        600.0, gt=0, le=3600, description="largest deadline_seconds a caller may ask for"
    )
    adaptive_confidence: float = Field(
        CONFIDENCE, gt=0.5, lt=1, description="with which an adaptive request bets that its answer is settled"
    )
    early_reject_after_tokens: int = Field(
        AFTER_TOKENS,
        ge=1,
        le=32768,
        description="tokens that each unfinished candidate of a wave must have before early_reject judges it",
    )
    early_reject_keep: float = Field(KEEP, gt=0, lt=1, description="share of a wave that early_reject keeps")
    calibration_file: Path | None = Field(
        None, description="what the scores of a reward version mean, from acemath eval calibrate; none = temperature 1"
    )
    policy_first_token_seconds: float = Field(
        60.0, gt=0, le=600, description="longest wait for a vLLM server's first token while there is another server"
    )
    policy_between_tokens_seconds: float = Field(
        45.0, gt=0, le=600, description="longest silence of a vLLM server that has begun to answer"
    )
    reward_answer_seconds: float = Field(
        30.0, gt=0, le=600, description="longest wait for one reward service while there is another one"
    )
    reward_hedge_seconds: float | None = Field(
        None,
        gt=0,
        le=600,
        description="a POST to a reward service that takes longer is made at another one, too, within the retry "
        "budget; the first answer counts. None: never",
    )
    live_scoring: bool = Field(
        True,
        description="hand candidates to the reward service while they are written (WS /v1/score/live); what that does "
        "not score is posted",
    )
    otlp_traces_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="where a collector takes traces as OTLP over HTTP, e.g. http://127.0.0.1:4318/v1/traces; needs the "
        "extra otel; none = no traces, but a caller's traceparent is passed on",
    )
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="share of the traces begun here that are kept; a caller's own say so themselves"
    )
    idempotency_ttl_seconds: int = Field(
        86_400, ge=1, le=604_800, description="how long an answer is kept under its key"
    )

    answer_cache_seconds: int = Field(
        0,
        ge=0,
        le=MAX_CACHE_SECONDS,
        description="how long a whole answer is given again to the same request of the same key, by the same release; "
        "0 = never. A caller's Cache-Control: no-cache asks for a new one",
    )
    answer_cache_megabytes: int = Field(
        32, ge=1, le=65_536, description="MiB that all such answers may take in Redis; the oldest go first"
    )

    api_keys_file: Path | None = Field(
        None, description="file (mode 0600) with one API key a line; none = loopback only"
    )
    require_keys: bool = Field(False, description="ask for a key on loopback too; elsewhere one is always asked for")
    admin_key_file: Path | None = Field(
        None,
        description="file (mode 0600) with the first admin key; made when there is none. Default: "
        "$XDG_STATE_HOME/acemath/admin.key (~/.local/state/acemath/admin.key)",
    )
    key_cache_seconds: float = Field(
        5.0, ge=0, le=60, description="how long a key is not looked up again; a revoked one works at most so long"
    )
    key_grace_seconds: float = Field(
        300.0, ge=0, le=3600, description="how long a key that was looked up works while Redis is away"
    )
    drain_notice_seconds: float = Field(
        2.0, ge=0, le=60, description="how long /readyz says 503 before the gateway stops accepting connections"
    )
    drain_seconds: int = Field(60, ge=1, le=3600, description="how long requests in flight may still take at a stop")

    @field_validator("policy_urls", "reward_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        listed = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
        return tuple(str(url).strip().rstrip("/") for url in listed if str(url).strip())

    @field_validator("policy_urls", "reward_urls")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [url for url in value if not url.startswith(("http://", "https://"))]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not an http:// or https:// URL")
        return value

    def largest_request(self) -> int:
        """Candidates that one request can have made at once."""
        return self.max_sequences_in_flight or MAX_CANDIDATES

    def api_keys(self) -> tuple[SecretStr, ...]:
        """The callers' keys in the file; there may be others in Redis (`keys_required`).

        Raises:
            SettingsError: the file cannot be read, is empty or readable by others; or there are no keys, nor an admin
                key to make some with, and the gateway is bound to more than loopback.
        """
        if self.api_keys_file is not None:
            return _keys_in(self.api_keys_file)
        if not is_loopback(self.host) and self.admin_key_file is None:
            raise SettingsError(
                f"ACEMATH_GATEWAY__HOST is {self.host}, which others can reach, and no API keys are configured; set "
                "ACEMATH_GATEWAY__API_KEYS_FILE to a file (mode 0600) with one key a line, or "
                "ACEMATH_GATEWAY__ADMIN_KEY_FILE to one with a key to make others with, or bind to 127.0.0.1"
            )
        return ()

    def keys_required(self) -> bool:
        """Whether nobody may call without a key; otherwise everybody on this machine may, except for `/admin`."""
        return self.require_keys or self.api_keys_file is not None or not is_loopback(self.host)

    def default_admin_key_file(self) -> Path | None:
        """Where the first admin key is when no setting says so; None for a user without a home."""
        try:
            state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        except RuntimeError:
            return None
        return Path(state) / "acemath" / "admin.key"

    def calibration(self) -> Calibration | None:
        """What the scores of a reward version mean, if that was configured.

        Raises:
            SettingsError: the file cannot be read or is none.
        """
        return None if self.calibration_file is None else read_calibration(self.calibration_file)

    def reject_rules(self) -> RejectRules:
        """Which candidates `early_reject` stops."""
        return RejectRules(self.early_reject_after_tokens, self.early_reject_keep)

    @classmethod
    def checked_from_env(cls) -> Self:
        """`from_env`, and the rules that need more than one field.

        Raises:
            SettingsError: a setting is unknown, of the wrong kind, or contradicts another.
        """
        settings = cls.from_env()
        if settings.default_deadline_seconds > settings.max_deadline_seconds:
            raise SettingsError(
                "ACEMATH_GATEWAY__DEFAULT_DEADLINE_SECONDS is larger than "
                "ACEMATH_GATEWAY__MAX_DEADLINE_SECONDS; lower the first"
            )
        settings.calibration()
        if settings.otlp_traces_url is not None and not _can_trace():
            raise SettingsError(
                "ACEMATH_GATEWAY__OTLP_TRACES_URL is set and OpenTelemetry is not installed; "
                "run: pip install 'acemath-gateway[otel]', or unset it"
            )
        return settings


def _can_trace() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _keys_in(path: Path) -> tuple[SecretStr, ...]:
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except OSError as error:
        raise SettingsError(
            f"API key file {path}: {error.strerror}; create it with mode 0600 and one key a line"
        ) from error
    if mode & 0o077:
        raise SettingsError(f"API key file {path} is readable by others (mode {mode & 0o777:o}); run: chmod 600 {path}")
    keys = tuple(SecretStr(line.strip()) for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not keys:
        raise SettingsError(f"API key file {path} has no key; write one key a line into it")
    return keys
