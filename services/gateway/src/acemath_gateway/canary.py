"""The release that a share of the requests gets beside the current one, while every replica has it ready.

Which requests those are depends on the request's key and the release alone, so that every gateway and every moment
agree: the key's hash, read as a number from 0 to 1, lies below the share. The key is the caller's `Idempotency-Key`,
with which a retry meets the same release; without one each attempt gets an id of ours, never the caller's
`X-Request-ID`. A larger share has the same ones and more. A request whose turn it is before the release can serve gets
the current one, whole; that is counted by why.

The canary holds the current release up in nothing: its tokenizer and its servers' lengths are read in a task beside the
poll, one at a time and with a deadline, and whatever goes wrong there is a state with a reason.

A replica stops a version that had a share by what the gateways' records say `SETTLE_SECONDS` after it began to drain
(`acemath_registry.following.places`). It relies on this: nothing is given out by what replicas said longer ago than
`VIEW_SECONDS`, nor while one of them did not answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_gateway.endpoints import Endpoints
from acemath_gateway.pointer import CanaryPointer, Pointer
from acemath_gateway.ports import ReleaseRole, ReleaseTarget
from acemath_gateway.prompts import RegistryEncoders
from acemath_gateway.release_figures import ReleaseFigures
from acemath_gateway.replicas import ADOPTABLE, ReplicaWatch
from acemath_prompts import TemplateError

VIEW_SECONDS = 10.0
"""Nothing is begun by what replicas said longer ago; they rely on it."""
PREPARE_SECONDS = 30.0
"""For reading its tokenizer and asking its servers for their lengths."""
_AGAIN_SECONDS = 5.0
"""From one that failed to the next: a large tokenizer that cannot be used takes a second of a core to find out."""


class CanaryState(StrEnum):
    """Whether a canary gets its share at this gateway, and if not, why."""

    SERVING = "serving"
    CURRENT_NOT_SERVED = "current_not_served"  # this gateway does not use the channel's current release yet
    UNREADABLE = "unreadable"  # its release or its tokenizer cannot be read
    READING = "reading"  # this gateway reads its tokenizer, and asks its servers what they take
    NO_ANSWER = "no_answer"  # a replica, or a server of one, does not answer
    NOT_LOADED = "not_loaded"  # a replica does not have one of its versions, yet or since it has no place for it
    COMING = "coming"  # a replica verifies, loads or warms it
    REJECTED = "rejected"  # a replica will not serve it; the reason says why
    LEAVING = "leaving"  # a replica drains it
    STALE = "stale"  # what the replicas said is too old by now


@dataclass(frozen=True, slots=True)
class CanaryView:
    """A canary as this gateway sees it.

    Attributes:
        release: its id.
        policy: policy version, None while the release cannot be read.
        reward: reward version.
        share: of the requests that it is to get.
        state: whether it gets it.
        reason: why not, in words; empty when it does.
    """

    release: str
    policy: str | None
    reward: str | None
    share: float
    state: CanaryState
    reason: str


def in_share(release: str, share: float, key: str) -> bool:
    """Whether a request is of a release's share: the first 64 bits of SHA-256(release, key) over 2^64 are below it."""
    digest = hashlib.sha256(f"{release}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


class CanaryShare:
    """Follows the canary that the channel names, and gives it to the requests of its share.

    Args:
        policy: the policy agents.
        reward: the reward services.
        endpoints: finds servers in what they say.
        encoders: reads a version's tokenizer before the version is used.
        figures: where requests are counted that got the current release instead.
    """

    def __init__(
        self,
        policy: ReplicaWatch,
        reward: ReplicaWatch,
        endpoints: Endpoints,
        encoders: RegistryEncoders,
        figures: ReleaseFigures,
    ) -> None:
        self._policy, self._reward, self._endpoints = policy, reward, endpoints
        self._encoders, self._figures = encoders, figures
        self._named: CanaryPointer | None = None
        self._beside = ""
        self._viewed = 0.0
        self._target: ReleaseTarget | None = None
        self._state, self._reason = CanaryState.NOT_LOADED, ""
        self._readable = False
        self._trouble: tuple[CanaryState, str] | None = None
        self._not_before = 0.0
        self._preparing: asyncio.Task[None] | None = None

    @property
    def release(self) -> str | None:
        """Id of the release that gets a share now."""
        return None if self._target is None else self._target.release

    @property
    def policy(self) -> str | None:
        """Policy version of the release that the channel names for a share."""
        pointer = self._named.pointer if self._named is not None else None
        return pointer.policy if pointer is not None else None

    def names(self, release: str) -> bool:
        """Whether the channel names this release for a share, whether or not it gets it now."""
        return self._named is not None and self._named.release == release

    def view(self) -> CanaryView | None:
        """What the channel names, and how it stands here; None while it names none."""
        named, state, reason = self._named, self._state, self._reason
        if named is None:
            return None
        if state is CanaryState.SERVING and self._stale():
            state, reason = CanaryState.STALE, "what the replicas said is too old by now; asking them again"
        pointer = named.pointer
        policy, reward = (pointer.policy, pointer.reward) if pointer else (None, None)
        return CanaryView(named.release, policy, reward, named.share, state, reason)

    def pick(self, key: str) -> ReleaseTarget | None:
        """The canary, for a request with this key that is of its share; None: the current release."""
        named = self._named
        if named is None or not in_share(named.release, named.share, key):
            return None
        stale = self._stale()
        if self._target is None or stale:
            state = CanaryState.STALE if stale and self._target is not None else self._state
            self._figures.fallbacks.labels(state).inc()
            return None
        return self._target

    def name(self, newest: Pointer | None) -> None:
        """Take in what the channel says now, at once: a share that ended is given to nobody any more."""
        named = newest.canary if newest is not None else None
        same = named is not None and self._named is not None and named.release == self._named.release
        if newest is None or not same or newest.release != self._beside:
            self._lose(CanaryState.NOT_LOADED, "it was not looked at yet")
        if not same:
            self._begin_anew()
        self._named, self._beside = named, newest.release if newest is not None else ""
        self._show()

    def follow(self, newest: Pointer | None, current: ReleaseTarget | None, viewed: float) -> None:
        """Serve it, or say why not; what has to be read first is begun, and found the next time.

        Args:
            newest: what the channel says, told to `name` already.
            current: what new jobs use.
            viewed: on `time.monotonic()`: the replicas were asked after that.
        """
        named = newest.canary if newest is not None else None
        if newest is None or named is None:
            return
        found = self._why_not(newest, named, current)
        if found is None and named.pointer is not None:
            self._take(named.pointer, newest.generation, viewed)
        elif found is not None:
            self._lose(*found)
        self._show()

    def _why_not(
        self, newest: Pointer, named: CanaryPointer, current: ReleaseTarget | None
    ) -> tuple[CanaryState, str] | None:
        if named.pointer is None:
            return CanaryState.UNREADABLE, named.problem
        if current is None or current.release != newest.release:
            return CanaryState.CURRENT_NOT_SERVED, f"{newest.release} is not served here yet"
        versions = ((self._policy, named.pointer.policy), (self._reward, named.pointer.reward))
        return next((found for replicas, version in versions for found in _missing(replicas, version)), None)

    def _take(self, pointer: Pointer, generation: int, viewed: float) -> None:
        target = self._endpoints.known(pointer) if self._readable else None
        if target is None:
            self._begin_preparing(pointer)
            self._lose(*self._trouble or (CanaryState.READING, "its tokenizer is read, and its servers are asked"))
            return
        if not target.policy_endpoints or not target.reward_endpoints:
            self._lose(CanaryState.NO_ANSWER, "no replica of both kinds answers")
            return
        self._target = replace(target, generation=generation, role=ReleaseRole.CANARY)
        self._viewed, self._state, self._reason = viewed, CanaryState.SERVING, ""
        self._trouble = None

    def _begin_preparing(self, pointer: Pointer) -> None:
        running = self._preparing is not None and not self._preparing.done()
        if not running and time.monotonic() >= self._not_before:
            self._preparing = asyncio.create_task(self._prepare(pointer), name="prepare the canary")

    async def _prepare(self, pointer: Pointer) -> None:
        trouble: tuple[CanaryState, str] | None = None
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                await self._encoders.load(pointer.policy, manifest_sha256=pointer.policy_manifest_sha256)
                self._readable = True
                await self._endpoints.locate(pointer, strict=True)
        except Exception as error:  # whatever is wrong with its files: it is the canary's, and nobody else's
            trouble = CanaryState.NO_ANSWER if self._readable else CanaryState.UNREADABLE, _said(error)
            self._not_before = time.monotonic() + _AGAIN_SECONDS
        self._trouble = trouble

    def _begin_anew(self) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
        self._readable, self._trouble, self._not_before = False, None, 0.0

    async def close(self) -> None:
        """End what is being read for it."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait({self._preparing})

    def _lose(self, state: CanaryState, reason: str) -> None:
        self._target, self._state, self._reason = None, state, reason

    def _stale(self) -> bool:
        return time.monotonic() - self._viewed > VIEW_SECONDS

    def _show(self) -> None:
        self._figures.share.set(self._named.share if self._named is not None and self._target is not None else 0.0)


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PREPARE_SECONDS:g} s; check the registry's mount or object store, and its servers"
    return str(error) if isinstance(error, ServiceError | TemplateError) else f"{type(error).__name__}: {error}"


def _missing(replicas: ReplicaWatch, version: str) -> Iterator[tuple[CanaryState, str]]:
    """What keeps each replica from serving a version."""
    for url in replicas.urls:
        slot = replicas.slot(url, version)
        if not replicas.answering(url):
            yield CanaryState.NO_ANSWER, f"{url} does not answer"
        elif slot is None or slot.state is SlotState.RETIRED:
            yield CanaryState.NOT_LOADED, f"{url} does not have {version} yet"
        elif slot.state not in ADOPTABLE:
            state = {SlotState.REJECTED: CanaryState.REJECTED, SlotState.DRAINING: CanaryState.LEAVING}
            said = f"{url} has {version} in state {slot.state.value}" + (f": {slot.reason}" if slot.reason else "")
            yield state.get(slot.state, CanaryState.COMING), said
