"""Keys, the lock and what an earlier run left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acemath_local.console import Console
from acemath_local.environment import make_key, prepare_state, socket_path
from acemath_local.leftover import previous_supervisor, wait_for_previous
from acemath_local.lock import StackLock, StackRunsError, is_running
from acemath_local.settings import LocalSettings, Ports


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    found = LocalSettings.read({"ACEMATH_LOCAL__STATE_DIR": str(tmp_path / "state")})
    prepare_state(found)
    return found


def test_the_internal_key_is_private_random_and_kept(settings, tmp_path):
    key = settings.state_dir / "keys" / "internal.key"
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_text()
    prepare_state(settings)
    assert key.read_text() == before and len(before.strip()) >= 40
    make_key(tmp_path / "other")
    assert (tmp_path / "other").read_text() != before


def test_a_long_path_gets_its_socket_elsewhere(tmp_path):
    deep = LocalSettings.read({"ACEMATH_LOCAL__STATE_DIR": str(tmp_path / ("x" * 120))})
    assert len(os.fsencode(socket_path(deep))) < 108
    assert socket_path(deep).parent.stat().st_mode & 0o777 == 0o700


def test_a_second_run_is_refused_with_pid_and_address_until_the_first_ends(settings):
    script = (
        "import sys; from pathlib import Path; from acemath_local.lock import StackLock as Lock\n"
        "from acemath_local.settings import Ports\n"
        f"with Lock(Path({str(settings.state_dir)!r}), 'http://127.0.0.1:1', Ports()):\n"
        " print('held', flush=1); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        with pytest.raises(StackRunsError, match=f"process {first.pid}, http://127.0.0.1:1.*make stop"):
            StackLock(settings.state_dir, "http://127.0.0.1:2", Ports()).__enter__()
        assert is_running(settings.state_dir)
        first.kill()
        first.wait(10)
    assert not is_running(settings.state_dir)
    with StackLock(settings.state_dir, "http://127.0.0.1:2", Ports()):
        pass


def test_a_stale_pid_file_is_no_previous_stack(settings, tmp_path):
    pidfile = settings.state_dir / "run" / "supervisord.pid"
    pidfile.write_text(str(os.getpid()))
    assert previous_supervisor(settings, tmp_path / "supervisord.conf") == 0


def test_a_start_waits_for_the_previous_stack(settings, tmp_path, capsys, monkeypatch, eventually):
    config = tmp_path / "supervisord.conf"
    console, waits = Console(), "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", waits, str(config)], stdin=subprocess.PIPE) as old:
        step = console.step
        # It ends while it is waited for.
        monkeypatch.setattr(console, "step", lambda title: (old.stdin.close(), step(title))[1])
        (settings.state_dir / "run" / "supervisord.pid").write_text(str(old.pid))
        eventually(lambda: previous_supervisor(settings, config) == old.pid, 60)
        wait_for_previous(settings, config, console)
        assert previous_supervisor(settings, config) == 0
    assert "waiting for the previous stack" in capsys.readouterr().out
