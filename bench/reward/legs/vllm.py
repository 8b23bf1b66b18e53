"""vLLM's offline pooling (`LLM.classify`) on token ids, raw scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import vllm
from vllm import LLM, PoolingParams

from bench.reward.groups import Group, Scores, folded, sequences
from bench.reward.worker import Options


class OfflinePooling:
    """One engine, eager, its prefix cache on.

    Args:
        checkpoint: its directory.
        engine: arguments of `LLM`, as tuned.
    """

    def __init__(self, checkpoint: str, engine: dict[str, Any]) -> None:
        self._engine = LLM(
            model=checkpoint,
            runner="pooling",
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=True,
            disable_log_stats=True,
            **engine,
        )
        self._params = PoolingParams(use_activation=False)
        self.facts: dict[str, Any] = {"vllm": vllm.__version__, "torch": torch.__version__, "dtype": "bfloat16"}
        self.facts |= {"engine": engine}

    def prepare(self, options: Options) -> None:
        """An empty prefix cache, unless the warm one is what is asked for."""
        if options.get("cache") != "warm" and not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")

    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """All sequences in one call."""
        prompts: list[Any] = [{"prompt_token_ids": list(ids)} for ids in sequences(groups)]
        found = self._engine.classify(prompts, pooling_params=self._params, use_tqdm=False)
        return folded([float(one.outputs.probs[0]) for one in found], groups)

    def close(self) -> None:
        """The processes end with the session."""


def create(options: Options) -> OfflinePooling:
    """See `bench.reward.worker`."""
    return OfflinePooling(options["checkpoint"], options["engine"])
