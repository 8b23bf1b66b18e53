"""From settings to what loads checkpoints: our engine in this process, or vLLM's servers below it."""

from __future__ import annotations

from functools import partial

from pydantic import SecretStr

from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.pooled.model import PooledLoader
from acemath_reward.ports import ModelLoader
from acemath_reward.settings import EngineKind, RewardSettings, inherited_environment


def loader_of(settings: RewardSettings, key: SecretStr | None) -> ModelLoader:
    """What loads a version.

    Args:
        settings: the service's.
        key: the internal key, which vLLM's servers ask for, too.
    """
    if settings.engine is EngineKind.VLLM:
        return PooledLoader(settings, inherited_environment(), key)
    placement = place(settings.device, settings.dtype, threads=settings.threads, row_tile=settings.row_tile)
    return partial(load_engine, placement=placement)
