"""`python -m acemath_policy`: settings from `ACEMATH_POLICY__…`, then serve until SIGTERM."""

from __future__ import annotations

import sys

from pydantic import SecretStr

from acemath_core.settings import SettingsError
from acemath_policy.app import create_app
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.reconcile import Reconciler
from acemath_policy.server import Launcher
from acemath_policy.settings import PolicySettings, inherited_environment
from acemath_registry import Registry, TrustedKeys, configured_keys
from acemath_registry.following import StatusLeases
from acemath_web.connections import ConnectionLimits
from acemath_web.logs import configure_logging
from acemath_web.run import run

_DRAIN_SECONDS = 5  # the agent's own requests are short; its servers drain in the lifespan's end


def main() -> None:
    """Run the agent; exit status 2 when a setting is wrong."""
    try:
        settings = PolicySettings.from_env()
        key, trusted = settings.internal_key(), configured_keys(settings.signature_keys_file)
    except SettingsError as error:
        sys.stderr.write(f"acemath-policy: {error}\n")
        raise SystemExit(2) from error
    configure_logging(settings.log_level)

    def make_reconciler(metrics: PolicyMetrics) -> Reconciler:
        return reconciler_of(settings, key, metrics, trusted)

    app, limits = create_app(make_reconciler, key), ConnectionLimits(settings.max_connections)
    run(app, host=settings.host, port=settings.port, drain_seconds=_DRAIN_SECONDS, limits=limits)


def reconciler_of(
    settings: PolicySettings, key: SecretStr | None, metrics: PolicyMetrics, trusted: TrustedKeys | None
) -> Reconciler:
    """The real parts, put together."""
    registry = Registry(settings.registry_root, trusted=trusted)
    return Reconciler(
        settings,
        registry,
        Launcher(settings, inherited_environment(), key, metrics),
        StatusLeases(registry, settings.channel, settings.lease_record_max_age_seconds),
        metrics,
    )


if __name__ == "__main__":
    main()
