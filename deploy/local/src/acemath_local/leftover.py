"""What a runner that was killed leaves: a supervisord that is stopping its programs. A new start waits for its end."""

from __future__ import annotations

import time
from pathlib import Path

from acemath_local.console import Console
from acemath_local.settings import LocalSettings

_WAIT_SECONDS = 300.0


class LeftoverError(Exception):
    """The previous supervisord does not end; the message names its process."""


def previous_supervisor(settings: LocalSettings, config: Path) -> int:
    """Pid of a supervisord that still runs this configuration for this state folder; 0 when there is none."""
    try:
        pid = int((settings.state_dir / "run" / "supervisord.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if str(config).encode() in command else 0


def wait_for_previous(settings: LocalSettings, config: Path, console: Console) -> None:
    """Return when no supervisord of an earlier run is left.

    Raises:
        LeftoverError: it is still there after five minutes.
    """
    pid = previous_supervisor(settings, config)
    if not pid:
        return
    deadline = time.monotonic() + _WAIT_SECONDS
    with console.step(f"waiting for the previous stack to stop (process {pid})"):
        while previous_supervisor(settings, config) == pid:
            if time.monotonic() > deadline:
                raise LeftoverError(f"the previous stack's supervisord does not end: kill process {pid}")
            time.sleep(0.2)  # noqa: TID251 - a polling loop with a deadline
