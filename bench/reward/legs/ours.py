"""The reward engine in process: threads that share each pass, and with each technique off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from acemath_reward.engine.config import read_config
from acemath_reward.engine.device import place
from acemath_reward.engine.model import RewardEngine
from acemath_reward.engine.weights import load_tensors
from acemath_reward.ports import PromptGroup
from bench.reward.division import Part, passes
from bench.reward.groups import Group, Scores
from bench.reward.worker import Options

BATCH_TOKENS = 2048
"""Tokens of a pass; the default of the service's `batch_tokens`."""


class Engine:
    """The engine of a checkpoint, and others of the same with something changed, made when first asked for.

    Args:
        checkpoint: its directory.
        device: torch device.
        dtype: `auto` or as `place` names it.
        threads: that share a pass.
    """

    def __init__(self, checkpoint: Path, device: str, dtype: str, threads: int) -> None:
        self._checkpoint = checkpoint
        self._placement = place(device, dtype, threads=threads)  # type: ignore[arg-type]
        self._engines: dict[str, RewardEngine] = {}
        self.facts: dict[str, Any] = dict(self._engine({}).facts())

    def _engine(self, changes: dict[str, Any]) -> RewardEngine:
        """The engine with other values in its `Placement`."""
        name = repr(sorted(changes.items()))
        if name not in self._engines:
            config = read_config(self._checkpoint)
            placement = replace(self._placement, **changes)
            self._engines[name] = RewardEngine(config, load_tensors(self._checkpoint, config), placement)
        return self._engines[name]

    def prepare(self, options: Options) -> None:
        """Load what the options ask for."""
        self._engine(options.get("engine", {}))

    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """Pass by pass."""
        engine = self._engine(options.get("engine", {}))
        if "live" in options:
            return [score_live(engine, group, options["live"]) for group in groups]
        how = {name: options[name] for name in ("share", "dedup") if name in options}
        scores = [[0.0] * len(group.candidates) for group in groups]
        for parts in passes(groups, options.get("budget", BATCH_TOKENS), **how):
            found = engine.score([PromptGroup(part.prompt, tuple(part.own)) for part in parts])
            for part, values in zip(parts, found, strict=True):
                _put(scores, part, values)
        return scores

    def close(self) -> None:
        """Nothing to end."""


def _put(scores: Scores, part: Part, values: Sequence[float]) -> None:
    for index, value in enumerate(values):
        for which, candidate in part.places[index]:
            scores[which][candidate] = value


def score_live(engine: RewardEngine, group: Group, piece: int) -> list[float]:
    """All candidates written at the same pace, computed after every `piece` tokens."""
    session, scores = engine.open(group.prompt), [0.0] * len(group.candidates)
    try:
        for start in range(0, max(map(len, group.candidates)), piece):
            for index, own in enumerate(group.candidates):
                if own[start : start + piece]:
                    session.extend(index, own[start : start + piece])
                if start < len(own) <= start + piece:
                    session.finish(index)
            due = session.due()
            for part, value in zip(due, engine.forward([part.cell for part in due]), strict=True):
                if part.candidate is not None and value is not None:
                    scores[part.candidate] = value
    finally:
        session.close()
    return scores


def create(options: Options) -> Engine:
    """See `bench.reward.worker`."""
    torch.manual_seed(0)
    return Engine(Path(options["checkpoint"]), options["device"], options.get("dtype", "auto"), options["threads"])
