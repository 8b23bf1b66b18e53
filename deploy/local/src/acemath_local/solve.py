"""`make solve`: ask this checkout's running stack, wherever its ports are."""

from __future__ import annotations

import os
import sys

from acemath_local.settings import LocalSettings


def main() -> None:
    """Become `acemath solve` with the address that the running stack wrote down, else the configured one."""
    settings = LocalSettings.from_env()
    try:
        url = (settings.state_dir / "run" / "gateway.url").read_text()
    except FileNotFoundError:
        url = f"http://127.0.0.1:{settings.ports.gateway}"
    command = [sys.executable, "-m", "acemath_cli", "solve", "--url", url, "--max-tokens", "256", *sys.argv[1:]]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
