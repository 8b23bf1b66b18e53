"""What an operator can say of swaps, alike for every service that follows a channel."""

from __future__ import annotations

from pydantic import Field

from acemath_core.settings import HttpServiceSettings
from acemath_registry.following.making_way import GATE_TIMEOUT_SECONDS, SwapStrategy


class SwapSettings(HttpServiceSettings):
    """The settings of a service whose models are swapped."""

    swap_strategy: SwapStrategy = Field(
        SwapStrategy.AVAILABILITY_PRESERVING,
        description="resource_preserving: the old version is stopped before the new one is loaded; requests wait",
    )
    gate_timeout_seconds: float = Field(
        GATE_TIMEOUT_SECONDS,
        gt=0,
        description="resource_preserving: an old version that is in use for longer stays, the new one is rejected",
    )
    lease_record_max_age_seconds: float = Field(30.0, gt=0, description="an older gateway record counts as unknown")
