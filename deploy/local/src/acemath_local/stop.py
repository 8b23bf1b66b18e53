"""`make stop`: end the stack that runs in this checkout, in order, and return when it is gone."""

from __future__ import annotations

import os
import signal
import time

from acemath_local.console import Console
from acemath_local.lock import holder, is_running, lock_path
from acemath_local.settings import LocalSettings

_WAIT_SECONDS = 320.0


def main() -> int:
    """0 when nothing runs any more, 1 when the runner does not end."""
    console, settings = Console(), LocalSettings.from_env()
    if not is_running(settings.state_dir):
        console.line("no stack of this checkout is running")
        return 0
    pid, gateway = holder(lock_path(settings.state_dir))
    if pid <= 0:
        console.line(f"✗ {lock_path(settings.state_dir)} does not say which process runs the stack")
        return 1
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _WAIT_SECONDS
    with console.step(f"stopping {gateway} (process {pid})"):
        while is_running(settings.state_dir) and time.monotonic() < deadline:
            time.sleep(0.2)  # noqa: TID251 - a polling loop with a deadline
    return 1 if is_running(settings.state_dir) else 0


if __name__ == "__main__":
    raise SystemExit(main())
