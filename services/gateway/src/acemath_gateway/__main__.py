"""`python -m acemath_gateway` (or `acemath-gateway`): settings → adapters → application → serve until told to stop."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager

from acemath_core.settings import SettingsError
from acemath_gateway.app import create_app
from acemath_gateway.compose import open_backends
from acemath_gateway.keys.first import admin_key
from acemath_gateway.readiness import ReadyState, drain_on_signal
from acemath_gateway.settings import GatewaySettings
from acemath_registry import configured_keys
from acemath_web.connections import ConnectionLimits
from acemath_web.logs import configure_logging
from acemath_web.run import run

_log = logging.getLogger(__name__)


def main() -> int:
    """Serve until SIGTERM or SIGINT; 2 when a setting keeps us from starting."""
    try:
        settings = GatewaySettings.checked_from_env()
        settings.internal_key()  # a key that cannot be read is found now, not at the first call
        configured_keys(settings.signature_keys_file)

        def draining(state: ReadyState) -> AbstractContextManager[None]:
            return drain_on_signal(state, settings.drain_notice_seconds)

        first = admin_key(settings)
        app = create_app(settings, open_backends, draining, first.key)
    except SettingsError as error:
        sys.stderr.write(f"acemath-gateway cannot start: {error}\n")
        return 2
    configure_logging(settings.log_level)
    _log.info("%s", first.said)
    limits = ConnectionLimits(settings.max_connections)
    run(app, host=settings.host, port=settings.port, drain_seconds=settings.drain_seconds, limits=limits, keeps=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
