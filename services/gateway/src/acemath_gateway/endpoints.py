"""Where a release is served now."""

from __future__ import annotations

from acemath_core.errors import ServiceError
from acemath_core.wire import Slot
from acemath_gateway.places import Capacity
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
        found = dict[str, int]()
        for server in self._servers(pointer.policy):
            try:
                found[server] = await self._length(server, pointer.policy)
            except ServiceError:
                if strict:
                    raise
        return self._target(pointer, found)

    def known(self, pointer: Pointer) -> ReleaseTarget | None:
        """What a strict `locate` would find without asking anybody; None while it would have to."""
        found = {server: self._lengths.get((server, pointer.policy)) for server in self._servers(pointer.policy)}
        lengths = {server: length for server, length in found.items() if length is not None}
        return self._target(pointer, lengths) if len(lengths) == len(found) else None

    def capacities(self, version: str) -> tuple[Capacity, ...]:
        """What each policy replica holds that new candidates of a version are made by."""
        slots = _serving(self._policy, version).values()
        return tuple(Capacity(slot.max_sequences, slot.cache_tokens) for slot in slots if slot.endpoint is not None)

    def forget_all_but(self, *versions: str | None) -> None:
        """Forget the lengths of other versions' servers."""
        self._lengths = {key: length for key, length in self._lengths.items() if key[1] in versions}

    def _servers(self, version: str) -> list[str]:
        slots = _serving(self._policy, version).values()
        return [slot.endpoint.rstrip("/") for slot in slots if slot.endpoint is not None]

    def _target(self, pointer: Pointer, lengths: dict[str, int]) -> ReleaseTarget:
        return ReleaseTarget(
            pointer.release,
            pointer.generation,
            pointer.policy,
            pointer.reward,
            tuple(lengths),
            tuple(_serving(self._reward, pointer.reward)),
            min(lengths.values(), default=None),
        )

    async def _length(self, endpoint: str, version: str) -> int:
        known = self._lengths.get((endpoint, version))
        if known is None:
            known = await self._slots.context_length(endpoint, version)
            self._lengths[endpoint, version] = known
        return known


def _serving(replicas: ReplicaWatch, version: str) -> dict[str, Slot]:
    slots = {url: replicas.slot(url, version) for url in replicas.urls}
    return {url: slot for url, slot in slots.items() if slot is not None and _takes_jobs(slot)}


def _takes_jobs(slot: Slot) -> bool:
    """What is gated makes room: who holds it goes on, nobody new comes. Of what is stuck nobody would get anything."""
    return slot.state in SERVING and not slot.gated and not slot.stuck
