"""The real server: what was written is there after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from acemath_local.redis_server import command, server_binary
from acemath_local.services import redis_answers
from acemath_local.settings import LocalSettings


def start(settings: LocalSettings, eventually) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "ACEMATH_LOCAL__STATE_DIR": str(settings.state_dir),
        "ACEMATH_LOCAL__REDIS_PORT": str(settings.ports.redis),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "acemath_local.redis_server"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: redis_answers(settings.ports.redis) == "", 60)
    return process


def test_what_was_written_survives_a_kill(tmp_path: Path, free_port, eventually):
    env = {"ACEMATH_LOCAL__STATE_DIR": str(tmp_path), "ACEMATH_LOCAL__REDIS_PORT": str(free_port())}
    settings = LocalSettings.read(env)
    for expected in (None, b"1"):
        with start(settings, eventually) as process, redis.Redis(port=settings.ports.redis) as client:
            assert client.get("job") == expected
            client.set("job", "1")
            process.kill()
            process.wait(10)
    assert redis_answers(settings.ports.redis) != ""


def test_a_configured_server_is_taken_and_loopback_only(tmp_path: Path):
    settings = LocalSettings.read({"ACEMATH_LOCAL__REDIS_SERVER": "/usr/bin/redis-server"})
    line = command(settings)
    assert line[0] == "/usr/bin/redis-server"
    assert line[line.index("--bind") + 1] == "127.0.0.1" and line[line.index("--appendonly") + 1] == "yes"
    assert Path(server_binary(None)).exists()


def test_without_the_package_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr("acemath_local.redis_server.importlib.util.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="ACEMATH_LOCAL__REDIS_SERVER"):
        server_binary(None)
