"""The figures of leases follow the release that new jobs use, not only the leases."""

from dataclasses import replace

from prometheus_client import CollectorRegistry

from acemath_gateway.leases import LeaseLedger
from acemath_gateway.metrics import GatewayMetrics
from doubles.ports import TARGET, MemoryLeases

AGES = ("current", "canary", "old")


async def test_leases_become_old_at_a_flip():
    registry, current, canary = CollectorRegistry(), [TARGET], [None]
    ledger = LeaseLedger(
        stores=(MemoryLeases(),),
        metrics=GatewayMetrics.on(registry),
        current=lambda: current[0],
        canary=lambda: canary[0],
        viewed=lambda: 0.0,
        heartbeat_seconds=5.0,
    )

    def shown() -> tuple[float | None, ...]:
        return tuple(registry.get_sample_value("acemath_gateway_leases", {"age": age}) for age in AGES)

    with ledger.holding(TARGET.release):
        assert shown() == (1, 0, 0)
        current[0] = replace(TARGET, release="r-2", generation=2)
        ledger.note_change()
        assert shown() == (0, 0, 1)
        canary[0] = "r-3"
        with ledger.holding("r-3"):
            assert shown() == (0, 1, 1)
    assert shown() == (0, 0, 0)
