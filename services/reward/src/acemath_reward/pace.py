"""How fast the engine is, and so how long a number of tokens takes."""

from __future__ import annotations

_SMOOTHING = 0.2  # weight of the newest pass
SMALLEST_PASS = 64
"""A pass of fewer tokens takes as long: the weights are read, and the smallest tile is computed."""
_FIRST_GUESS = 500.0  # tokens per second, before anything was measured


class Pace:
    """The engine's measured speed: tokens over seconds of recent passes."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    @property
    def measured(self) -> bool:
        """Whether a pass was noted."""
        return self._seconds > 0.0

    @property
    def tokens_per_second(self) -> float:
        """The speed; a cautious guess before the first pass."""
        return self._tokens / self._seconds if self.measured else _FIRST_GUESS

    def note(self, tokens: int, seconds: float) -> None:
        """Take in a pass."""
        self._tokens = self._tokens * (1 - _SMOOTHING) + max(tokens, SMALLEST_PASS)
        self._seconds = self._seconds * (1 - _SMOOTHING) + max(seconds, 1e-6)

    def seconds(self, tokens: int) -> float:
        """How long so many tokens take."""
        return tokens / self.tokens_per_second
