"""The services that are asked, each a process of its own: `tests/doubles` says what is real of it."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

DOUBLES = Path(__file__).resolve().parents[2] / "tests" / "doubles"


@dataclass(frozen=True)
class Service:
    """One that runs.

    Attributes:
        url: its base URL.
        key: opens all of it.
        told: what its hooks are told, as environment variables.
    """

    url: str
    key: str
    told: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[Service]:
    """A gateway that knows keys, asked with one that has every scope."""
    first = _key_file(folder / "admin.key")
    settings = [f"ADMIN_KEY_FILE={folder / 'admin.key'}", f"API_KEYS_FILE={folder / 'api.keys'}"]
    _key_file(folder / "api.keys")  # without one, callers on loopback need none
    with _running("whole_gateway.py", *settings) as url:
        wanted = {"name": "interop", "scopes": ["solve", "jobs", "admin"]}
        headers = {"authorization": f"Bearer {first}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, verify=False) as http:
            made = http.post("/admin/v1/keys", json=wanted).raise_for_status().json()
            http.headers["authorization"] = f"Bearer {made['key']}"
            release = http.get("/v1/releases").raise_for_status().json()["data"][0]["id"]
        yield Service(url, made["key"], {"INTEROP_KEY_ID": made["id"], "INTEROP_RELEASE": release})


@contextlib.contextmanager
def reward(folder: Path) -> Iterator[Service]:
    """The reward service, with the internal key."""
    yield from _internal("reward", folder)


@contextlib.contextmanager
def policy(folder: Path) -> Iterator[Service]:
    """The policy agent, with the internal key."""
    yield from _internal("policy", folder)


def _internal(name: str, folder: Path) -> Iterator[Service]:
    key = _key_file(folder / "internal.key")
    with _running("whole_services.py", name, f"INTERNAL_KEY_FILE={folder / 'internal.key'}") as url:
        yield Service(url, key)


def _key_file(path: Path) -> str:
    key = secrets.token_urlsafe(32)
    path.touch(0o600)
    path.write_text(key)
    return key


@contextlib.contextmanager
def _running(program: str, *arguments: str) -> Iterator[str]:
    """A program that prints its URL and serves until it is told to stop."""
    command = [sys.executable, str(DOUBLES / program), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit(f"{program} did not start; its reason is above")
            yield url
        finally:
            process.terminate()
            process.wait(90)
