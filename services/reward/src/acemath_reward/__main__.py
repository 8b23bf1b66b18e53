"""`python -m acemath_reward`: settings from `ACEMATH_REWARD__…`, then serve until SIGTERM."""

from __future__ import annotations

import sys

from acemath_core.settings import SettingsError
from acemath_registry import configured_keys
from acemath_reward.app import create_app
from acemath_reward.loaders import loader_of
from acemath_reward.settings import RewardSettings
from acemath_web.connections import ConnectionLimits
from acemath_web.logs import configure_logging
from acemath_web.run import run


def main() -> None:
    """Run the service; exit status 2 when a setting is wrong."""
    try:
        settings = RewardSettings.from_env()
        key = settings.internal_key()
        configured_keys(settings.signature_keys_file)  # what cannot be used is found now, before a model is loaded
    except SettingsError as error:
        sys.stderr.write(f"acemath-reward: {error}\n")
        raise SystemExit(2) from error
    configure_logging(settings.log_level)
    app = create_app(settings, loader_of(settings, key), key)
    limits = ConnectionLimits(settings.max_connections)
    run(
        app,
        host=settings.host,
        port=settings.port,
        drain_seconds=settings.drain_seconds,
        limits=limits,
        drain=app.state.drain,
        max_message_bytes=settings.max_body_bytes,
    )


if __name__ == "__main__":
    main()
