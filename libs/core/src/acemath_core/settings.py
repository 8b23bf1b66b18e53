"""Settings are frozen values read once, at `__main__`, from variables under the process's own prefix.

An unknown name under the prefix stops the start: a mistyped setting that silently does nothing is found at three in
the morning. pydantic-settings does not refuse one by itself, so `from_env` does.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """A setting is unknown or has a wrong value; the message names the variable and what to do."""


class ServiceSettings(BaseSettings):
    """Base of every process's settings. A subclass sets `model_config = settings_config("ACEMATH_X__")`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    def prefix(cls) -> str:
        """The environment prefix of this process, e.g. `ACEMATH_REWARD__`."""
        return cls.model_config.get("env_prefix", "")

    @classmethod
    def from_env(cls) -> Self:
        """Read the settings from the environment.

        Raises:
            SettingsError: an unknown name under the prefix, or a value of the wrong kind.
        """
        _refuse_unknown(cls.prefix(), set(cls.model_fields), os.environ)
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError(_explain(cls.prefix(), error)) from error


def _replica_name(values: dict[str, Any]) -> str:
    """Two replicas must not share a name, or they overwrite each other's record."""
    return f"{socket.gethostname()[:48]}-{values.get('port', 0)}"


class HttpServiceSettings(ServiceSettings):
    """What the settings of every HTTP service have in common."""

    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(description="port to bind", ge=1, le=65535)
    instance: str = Field(
        default_factory=_replica_name,
        description="name of this replica in status files and leases; default <host>-<port>",
        pattern=r"^[\w.-]{1,64}$",
    )
    registry_root: Path | str = Field(description="root of the model registry: a directory, or s3://bucket/prefix")
    channel: str = Field("default", description="channel to follow", pattern=r"^[\w.-]{1,64}$")
    signature_keys_file: Path | None = Field(
        None, description="PEM file of Ed25519 public keys; a version that none of them signed is not used"
    )
    internal_key_file: Path | None = Field(
        None, description="file (mode 0600) with the key that services show each other"
    )
    max_connections: int = Field(
        1024, ge=8, le=65_536, description="open connections; beyond, the oldest that waits for its caller is closed"
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")

    @field_validator("registry_root", mode="after")
    @classmethod
    def _place(cls, given: Path | str) -> Path | str:
        if "://" not in str(given):
            return Path(given)
        if not str(given).startswith("s3://"):
            raise ValueError("is no place for a registry; give a directory, or s3://bucket/prefix")
        return str(given)

    def internal_key(self) -> SecretStr | None:
        """The key that services show each other, or None when none is configured.

        Raises:
            SettingsError: the file cannot be read, is empty, or is readable by others.
        """
        if self.internal_key_file is None:
            return None
        return read_key_file(self.internal_key_file)


def settings_config(prefix: str) -> SettingsConfigDict:
    """The pydantic-settings configuration of a process whose variables begin with `prefix`."""
    return SettingsConfigDict(env_prefix=prefix, frozen=True, extra="forbid", validate_default=True)


def read_key_file(path: Path) -> SecretStr:
    """The key in a file of mode 0600.

    Raises:
        SettingsError: missing, empty, or readable by group or others.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"key file {path}: {error.strerror}; create it with mode 0600 and one line, the key"
        ) from error
    if mode & 0o077:
        raise SettingsError(f"key file {path} is readable by others (mode {mode & 0o777:o}); run: chmod 600 {path}")
    if not text:
        raise SettingsError(f"key file {path} is empty; write the key into it")
    return SecretStr(text)


def _refuse_unknown(prefix: str, fields: set[str], environment: Mapping[str, str]) -> None:
    known = {f"{prefix}{name}".upper() for name in fields}
    unknown = sorted(n for n in environment if n.upper().startswith(prefix.upper()) and n.upper() not in known)
    if unknown:
        near = get_close_matches(unknown[0].upper(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
        raise SettingsError(f"unknown setting {', '.join(unknown)}{hint}")


def _explain(prefix: str, error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        name = f"{prefix}{'_'.join(str(part) for part in item['loc'])}".upper()
        lines.append(f"{name}: {item['msg']}")
    return "; ".join(lines)
