"""What replicas say of a version, in the status records that they write of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from acemath_core.wire import SlotState

_GONE_AFTER_S: Final = 300.0  # a replica writes its record every 10 s
_REPRODUCED: Final = frozenset({SlotState.READY, SlotState.ACTIVE, SlotState.DRAINING})


@dataclass(frozen=True, slots=True)
class Word:
    """What one replica's record says of a version.

    Attributes:
        channel: that the replica follows; older replicas do not say it.
        gone: the record is so old that the replica has gone: it rejects nothing any more. What it reproduced, it did.
    """

    instance: str
    channel: Any
    state: Any
    reason: Any
    gone: bool

    @property
    def reproduced(self) -> bool:
        """Whether the replica has loaded the version, which it does only where the canary came out."""
        return self.state in _REPRODUCED

    def rejects(self, again_on: str | None = None) -> bool:
        """Whether its rejection counts; not where the channel `again_on` is about to let it try again."""
        tries_again = again_on is not None and self.channel in (again_on, None)
        return self.state == SlotState.REJECTED and not self.gone and not tries_again


def words(records: Mapping[str, dict[str, Any]], version: str) -> Iterator[Word]:
    """Of every replica that says something of the version: its last slot, which stands behind what it was before.

    Args:
        records: instance → what it wrote last, of one service.
        version: `name@version`.
    """
    for instance, document in records.items():
        slots, at = document.get("slots"), document.get("at")
        found = [slot for slot in slots if isinstance(slot, dict)] if isinstance(slots, list) else []
        ours = [slot for slot in found if slot.get("version") == version]
        if ours:
            gone = isinstance(at, int | float) and time.time() - at > _GONE_AFTER_S
            last, channel = ours[-1], document.get("channel")
            yield Word(instance, channel, last.get("state"), last.get("reason"), gone)
