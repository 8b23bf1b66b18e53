"""A test session that is killed leaves no stack behind: shown with a runner that would live for a minute."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

HELPERS = Path(__file__).with_name("conftest.py")
SESSION = f"""
import importlib.util, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(HELPERS.parents[1])!r})
spec = importlib.util.spec_from_file_location("stack_helpers", {str(HELPERS)!r})
helpers = importlib.util.module_from_spec(spec)
sys.modules["stack_helpers"] = helpers
spec.loader.exec_module(helpers)
log = Path(sys.argv[1])
runner = helpers.launch(["-c", "print('runs', flush=True); import time; time.sleep(60)"], dict(os.environ), log)
while "runs" not in log.read_text():
    time.sleep(0.05)
print(runner.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_runner_ends_with_the_session_that_started_it(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path / "out")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -9, done.stderr
    deadline = time.monotonic() + 10
    while _lives(int(done.stdout)):
        assert time.monotonic() < deadline, "the runner outlives its session"
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
