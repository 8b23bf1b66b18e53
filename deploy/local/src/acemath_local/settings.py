"""Where the local stack lives: `ACEMATH_LOCAL__*`, and the ports, each of which is a setting of its own.

Standard library only, because the ports are checked before anything is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PREFIX = "ACEMATH_LOCAL__"
_KNOWN = ("STATE_DIR", "PORT_BASE", "REDIS_PORT", "PROMETHEUS_PORT", "PROMETHEUS", "REDIS_SERVER", "READY_SECONDS")


class LocalSettingsError(Exception):
    """A setting is unknown or wrong; the message names it."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The loopback ports of the stack; `vllm_first` and the nine after it belong to the policy agent's vLLM servers."""

    gateway: int = 8080
    policy: int = 8100
    vllm_first: int = 8110
    reward: int = 8200
    redis: int = 6380
    prometheus: int = 9090

    @classmethod
    def from_base(cls, base: int) -> Ports:
        """Twenty consecutive ports: gateway, policy, reward, Redis, Prometheus, and vLLM's from `base + 10`."""
        return cls(base, base + 1, base + 10, base + 2, base + 3, base + 4)

    def named(self) -> dict[str, int]:
        """The ports that must be free before a start, by the service that will listen there."""
        return {
            "gateway": self.gateway,
            "policy agent": self.policy,
            "vLLM": self.vllm_first,
            "reward": self.reward,
            "Redis": self.redis,
        }

    def ranges(self) -> dict[str, range]:
        """Every port that a part of the stack without Prometheus may ever take, by the service."""
        last = {"vLLM": self.vllm_first + 9}
        return {name: range(port, last.get(name, port) + 1) for name, port in self.named().items()}


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """The settings of the local stack.

    Attributes:
        state_dir: registry, keys, logs, Redis' append-only file; nothing outside it is written.
        ports: where each service listens.
        prometheus: "auto" starts a Prometheus that is installed on this machine when its port is free, "off" does not.
        redis_server: path of a Redis-protocol server; None takes the one that set-up installed.
        ready_seconds: how long one service may take to become ready.
    """

    state_dir: Path
    ports: Ports
    prometheus: str = "auto"
    redis_server: str | None = None
    ready_seconds: float = 600.0

    @classmethod
    def from_env(cls) -> LocalSettings:
        """Read the process's environment; see `read`."""
        return cls.read(os.environ)

    @classmethod
    def read(cls, env: Mapping[str, str]) -> LocalSettings:
        """Read a mapping of environment variables.

        Raises:
            LocalSettingsError: an unknown name under the prefix, or a value of the wrong kind.
        """
        _refuse_unknown(env)
        prometheus = env.get(f"{PREFIX}PROMETHEUS", "auto")
        if prometheus not in ("auto", "off"):
            raise LocalSettingsError(f"{PREFIX}PROMETHEUS={prometheus}: use auto or off")
        return cls(
            state_dir=Path(env.get(f"{PREFIX}STATE_DIR", ".local")).absolute(),
            ports=_ports(env),
            prometheus=prometheus,
            redis_server=env.get(f"{PREFIX}REDIS_SERVER"),
            ready_seconds=float(_integer(env, f"{PREFIX}READY_SECONDS", 600)),
        )


def process_environment() -> dict[str, str]:
    """A copy of this process's environment, the base of what its children get."""
    return dict(os.environ)


def _refuse_unknown(env: Mapping[str, str]) -> None:
    known = {PREFIX + name for name in _KNOWN}
    unknown = sorted(name for name in env if name.upper().startswith(PREFIX) and name not in known)
    if unknown:
        raise LocalSettingsError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _ports(env: Mapping[str, str]) -> Ports:
    base = _integer(env, f"{PREFIX}PORT_BASE", 0)
    if base and not 1024 <= base <= 65500:
        raise LocalSettingsError(f"{PREFIX}PORT_BASE={base}: use a port from 1024 to 65500")
    default = Ports.from_base(base) if base else Ports()
    return Ports(
        gateway=_integer(env, "ACEMATH_GATEWAY__PORT", default.gateway),
        policy=_integer(env, "ACEMATH_POLICY__PORT", default.policy),
        vllm_first=_integer(env, "ACEMATH_POLICY__FIRST_VLLM_PORT", default.vllm_first),
        reward=_integer(env, "ACEMATH_REWARD__PORT", default.reward),
        redis=_integer(env, f"{PREFIX}REDIS_PORT", default.redis),
        prometheus=_integer(env, f"{PREFIX}PROMETHEUS_PORT", default.prometheus),
    )


def _integer(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise LocalSettingsError(f"{name}={text}: not a whole number") from None
