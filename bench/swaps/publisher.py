"""Makes releases that show in every answer who wrote it and who scored it, and publishes them."""

from __future__ import annotations

import itertools
import string
import tempfile
import time
from pathlib import Path

from acemath_registry import Registry
from bench.swaps.load import Release
from bench.swaps.models import write_policy, write_reward
from bench.swaps.publishing import Prepared, publish
from bench.swaps.scores import scores_of


class Publisher:
    """Makes releases, each of two new versions.

    Args:
        registry: where `make` publishes them.
        max_tokens: that a candidate will have.
    """

    def __init__(self, registry: Registry, max_tokens: int) -> None:
        self._registry, self._max_tokens = registry, max_tokens
        self._numbers = itertools.count(1)
        self._run = time.strftime("%H%M%S")

    def prepare(self, folder: Path) -> Prepared:
        """Write the next two checkpoints below an empty folder."""
        number = next(self._numbers)
        letter = string.ascii_letters[number % len(string.ascii_letters)]
        policy = write_policy(folder / "policy", letter)
        reward = write_reward(folder / "reward", int(self._run) * 1000 + number)
        return Prepared(number, policy, reward, letter, scores_of(reward, letter * self._max_tokens))

    def make(self) -> Release:
        """Publish the next two versions and a release of them."""
        with tempfile.TemporaryDirectory() as folder:
            made = self.prepare(Path(folder))
            policy = publish(self._registry, "policy", made.policy, made.number)
            reward = publish(self._registry, "reward", made.reward, made.number)
        release = self._registry.create_release(policy, reward)
        return Release(release.id, str(policy), str(reward), made.letter, made.scores)
