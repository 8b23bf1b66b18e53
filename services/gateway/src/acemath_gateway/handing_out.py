"""The current release for new jobs; while a replica makes room for another version, they wait for it.

A replica of which one device holds only one version stops the old before it loads the new (`swap_strategy` there). It
*gates* the old one first: what holds it goes on, and nothing new may go there. From then until the release has servers
again, or another one is current, its new jobs wait inside their deadlines. They hold their places in the limit on
sequences meanwhile, so that no more wait than may be worked on. Every other lack of a server is told at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, Unavailable
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.replicas import ReplicaWatch
from acemath_web.health import Readiness


class HandingOut:
    """Gives new jobs the current release.

    Args:
        current: the current release, None before the first.
        policy: the policy agents.
        reward: the reward services.

    Attributes:
        making_room: why new jobs wait, in words; None while they do not.
    """

    def __init__(self, current: Callable[[], ReleaseTarget | None], policy: ReplicaWatch, reward: ReplicaWatch) -> None:
        self._current, self._policy, self._reward = current, policy, reward
        self._changed = asyncio.Event()
        self._of: str | None = None
        self.making_room: str | None = None

    def follow(self) -> None:
        """Take in what is current, and what the replicas say; whoever waits looks again. To be called at once after."""
        target = self._current()
        if target is None or target.release != self._of or _whole(target):
            self.making_room = None
        if target is not None and not _whole(target):
            self.making_room = self._gated(target) or self.making_room
        self._of = None if target is None else target.release
        self._changed.set()
        self._changed = asyncio.Event()

    async def target(self, deadline: Deadline) -> ReleaseTarget:
        """The release for a new job.

        Raises:
            Unavailable: (`not_ready`) there was none yet, or it was being replaced until the deadline;
                (`policy_unavailable`) no policy server is left.
        """
        while self.making_room is not None:
            try:
                async with asyncio.timeout(deadline.remaining()):
                    await self._changed.wait()
            except TimeoutError:
                raise _being_replaced(self.making_room) from None
        return _usable(self._current())

    def _gated(self, target: ReleaseTarget) -> str | None:
        for replicas, version in ((self._policy, target.policy), (self._reward, target.reward)):
            for url in replicas.urls:
                slot = replicas.slot(url, version)
                if slot is not None and slot.gated:
                    return f"{url}: {version} {slot.reason or 'makes room'}"
        return None


def verdict(
    problem: str, target: ReleaseTarget | None, making_room: str | None, replicas: Mapping[str, object]
) -> Readiness:
    """Whether new jobs can be taken, and if only to wait while a replica makes room.

    Args:
        problem: what is wrong with what was seen last; empty for nothing.
        target: the current release.
        making_room: why new jobs wait, None while they do not.
        replicas: what is shown of them.
    """
    details: dict[str, object] = {"problem": problem, **replicas}
    if target is None:
        return Readiness(False, problem or "no release is ready yet", details)
    details |= {"release": target.release, "generation": target.generation}
    details |= {"policy": target.policy, "reward": target.reward, "making_room": making_room}
    if making_room is not None:
        return Readiness(True, "", details)
    if not target.policy_endpoints:
        return Readiness(False, "no policy server answers", details)
    if not target.reward_endpoints:
        return Readiness(False, "no reward service answers", details)
    return Readiness(True, "", details)


def _whole(target: ReleaseTarget) -> bool:
    return bool(target.policy_endpoints and target.reward_endpoints)


def _usable(target: ReleaseTarget | None) -> ReleaseTarget:
    if target is None:
        raise Unavailable("no release is ready yet; try again shortly", code=ErrorCode.NOT_READY, retry_after=5.0)
    if not target.policy_endpoints:
        raise Unavailable(
            "no policy server answers; try again shortly", code=ErrorCode.POLICY_UNAVAILABLE, retry_after=5.0
        )
    return target


def _being_replaced(why: str) -> Unavailable:
    return Unavailable(
        f"the version is being replaced, and the deadline came first ({why}); try again, or send a larger deadline",
        code=ErrorCode.NOT_READY,
        retry_after=15.0,
    )
