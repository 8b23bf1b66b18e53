"""Where a release is served now."""

from __future__ import annotations

from acemath_core.errors import ServiceError
from acemath_core.wire import Slot
from acemath_gateway.pointer import Pointer
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.replicas import SERVING, ReplicaWatch, SlotsPort


class Endpoints:
    """Finds them in what the replicas said last; a server's length is asked for once.

    Args:
        slots: asks a policy server how many tokens it takes.
        policy: the policy agents.
        reward: the reward services.
    """

    def __init__(self, slots: SlotsPort, policy: ReplicaWatch, reward: ReplicaWatch) -> None:
        self._slots, self._policy, self._reward = slots, policy, reward
        self._lengths: dict[tuple[str, str], int] = {}

    async def locate(self, pointer: Pointer, *, strict: bool) -> ReleaseTarget:
        """The endpoints that serve a release.

        Raises:
            Unavailable: (only when strict) a policy server that reports the version does not answer to it.
        """
        policy, lengths = [], []
        for slot in _serving(self._policy, pointer.policy).values():
            if slot.endpoint is None:
                continue
            try:
                lengths.append(await self._length(slot.endpoint.rstrip("/"), pointer.policy))
            except ServiceError:
                if strict:
                    raise
                continue
            policy.append(slot.endpoint.rstrip("/"))
        return ReleaseTarget(
            pointer.release,
            pointer.generation,
            pointer.policy,
            pointer.reward,
            tuple(policy),
            tuple(_serving(self._reward, pointer.reward)),
            min(lengths, default=None),
        )

    def forget_all_but(self, version: str) -> None:
        """Forget the lengths of other versions' servers."""
        self._lengths = {key: length for key, length in self._lengths.items() if key[1] == version}

    async def _length(self, endpoint: str, version: str) -> int:
        known = self._lengths.get((endpoint, version))
        if known is None:
            known = await self._slots.context_length(endpoint, version)
            self._lengths[endpoint, version] = known
        return known


def _serving(replicas: ReplicaWatch, version: str) -> dict[str, Slot]:
    slots = {url: replicas.slot(url, version) for url in replicas.urls}
    return {url: slot for url, slot in slots.items() if slot is not None and slot.state in SERVING}
