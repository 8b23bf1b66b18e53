"""The bytes that live sessions may hold, counted when tokens are handed over, before anything is computed."""

from __future__ import annotations

import threading

from torch import Tensor

from acemath_reward.engine.cells import Track
from acemath_reward.ports import LiveBudgetExceeded, LiveLimits


class Budget:
    """All accounts of one engine.

    Args:
        limits: bytes for all sessions and for one.
        token_bytes: keys and values of one token in all layers.
    """

    def __init__(self, limits: LiveLimits, token_bytes: int) -> None:
        self._limits, self._token_bytes = limits, token_bytes
        self._lock = threading.Lock()
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that sessions hold now, tokens that wait for their cell included."""
        return self._held

    def open(self) -> Account:
        """An account for a new session."""
        return Account(self)

    def _take(self, account: Account, track: Track, tokens: int) -> None:
        size = tokens * self._token_bytes
        with self._lock:
            _check("this session", account.held + size, self._limits.session_bytes)
            _check("all live sessions", self._held + size, self._limits.total_bytes)
            self._add(account, track, size)

    def _give_back(self, account: Account, track: Track) -> None:
        with self._lock:
            track.closed = True  # first: the engine's thread reads the rest without the lock (`packing`)
            track.kept, track.length = (), 0
            self._add(account, track, -track.reserved)

    def _keep(self, track: Track, store: Tensor) -> None:
        with self._lock:
            if not track.closed:  # closed while the pass ran: nobody needs it
                track.kept, track.length = (*track.kept, store), track.length + store.shape[1]

    def _add(self, account: Account, track: Track, size: int) -> None:
        self._held += size
        account.held += size
        track.reserved += size


class Account:
    """What one session holds.

    Args:
        budget: the engine's.

    Attributes:
        held: bytes of this session.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget, self.held = budget, 0

    def reserve(self, track: Track, tokens: int) -> None:
        """Take the bytes of `tokens` more tokens. Raises `LiveBudgetExceeded`, and then takes nothing."""
        self._budget._take(self, track, tokens)

    def add(self, track: Track, store: Tensor) -> None:
        """Keep keys and values of the track's next tokens, `[layers, tokens, 2, kv_heads, head_dim]`."""
        self._budget._keep(track, store)

    def free(self, track: Track) -> None:
        """Give back all that the track holds; its keys and values go with the pass that may still use them."""
        self._budget._give_back(self, track)


def _check(who: str, wanted: int, limit: int) -> None:
    if wanted > limit:
        raise LiveBudgetExceeded(f"{who} would hold {wanted} bytes of keys and values; {limit} is the limit")
