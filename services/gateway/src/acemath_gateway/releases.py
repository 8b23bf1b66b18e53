"""Which release new jobs use, where it is served, and who still uses an older one.

    channel file ─┐ (stat every second)
                  ├─► poll ─► one reference, `ReleaseTarget` ─► lease ─► a job keeps it to its end
    /v1/slots ────┘ of every policy agent and reward service

Rules:

* The reference moves to the channel's release in one assignment, when every configured replica reports it ready and
  its tokenizer could be read. Until then everything stays as it is: a bad checkpoint changes a reason and no answer.
* While the channel's release is not ready, one that another gateway routes by is taken if that is a step forward: one
  of two gateways may have flipped before the channel moved on, and an old version is kept for the slower one.
* A version that drains is never flipped to, unless it drains because the newest one is there: it is kept for us then.
* A replica that stops answering only takes its endpoint out of the current release; the others go on. While one makes
  room and no other is left, new jobs wait (`handing_out`); a version that makes room is never flipped to.
* A gateway that starts has nothing to stay on: it takes the channel's release or, when that one is not ready, the one
  by which gateways routed last, itself before a restart among them. After `start_grace_seconds` it takes an older one
  too, and replicas that do not answer are left out.
* A job keeps the release it leased to its end, whatever moves meanwhile (`leases`).
* A release that the channel names for a share of the requests gets it beside the current one (`canary`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from acemath_core.deadline import Deadline
from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_gateway.canary import VIEW_SECONDS, CanaryShare, CanaryView
from acemath_gateway.endpoints import Endpoints
from acemath_gateway.handing_out import HandingOut, verdict
from acemath_gateway.leases import LeaseLedger
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.places import Capacity
from acemath_gateway.pointer import ChannelWatch, Pointer, SlowReader
from acemath_gateway.ports import LeaseStore, ReleaseRole, ReleaseTarget
from acemath_gateway.prompts import RegistryEncoders
from acemath_gateway.release_figures import CountedAs
from acemath_gateway.replicas import ADOPTABLE, SERVING, Addresses, ReplicaWatch, SlotsPort
from acemath_prompts import TemplateError
from acemath_web.health import Readiness

_log = logging.getLogger(__name__)
_VIEW_SECONDS = VIEW_SECONDS
"""Nothing is flipped to by what replicas said longer ago; they rely on it (`acemath_registry.following.places`). The
slowest poll of a sound system takes less: 2 s for names and 5 s for slots, and what it reads after that is kept."""
_STARTING = "starting: nothing has been polled yet"


class ReleaseTracker:
    """Follows a channel and its replicas; `run` must run as long as leases are given.

    Args:
        channel: what is to be served.
        slots: asks replicas.
        policy_urls: every policy agent.
        reward_urls: every reward service.
        encoders: reads a version's tokenizer before the version is used.
        stores: where leases are published.
        metrics: where versions and leases are counted.
        poll_seconds: between two looks.
        heartbeat_seconds: longest time between two publications of leases.
        start_grace_seconds: how long a starting gateway waits for replicas that do not answer.
        addresses: finds the replicas behind names; None takes each URL for one replica.
        capacities: is told at every look what the replicas hold that make candidates.
    """

    def __init__(
        self,
        *,
        channel: ChannelWatch,
        slots: SlotsPort,
        policy_urls: Sequence[str],
        reward_urls: Sequence[str],
        encoders: RegistryEncoders,
        stores: Sequence[LeaseStore],
        metrics: GatewayMetrics,
        poll_seconds: float = 1.0,
        heartbeat_seconds: float = 5.0,
        start_grace_seconds: float = 15.0,
        addresses: Addresses | None = None,
        capacities: Callable[[Sequence[Capacity]], object] = lambda _: None,
    ) -> None:
        self._encoders = encoders
        self._policy, self._reward = (ReplicaWatch(slots, urls, addresses) for urls in (policy_urls, reward_urls))
        self._endpoints = Endpoints(slots, self._policy, self._reward)
        self._metrics, self._poll_seconds, self._capacities = metrics, poll_seconds, capacities
        self._canary = CanaryShare(self._policy, self._reward, self._endpoints, encoders, metrics.releases)
        self._handing_out = HandingOut(self.current, self._policy, self._reward)
        self._ledger = LeaseLedger(
            stores=stores, metrics=metrics, current=self.current, canary=lambda: self._canary.release,
            viewed=lambda: time.time() - (time.monotonic() - self._viewed), heartbeat_seconds=heartbeat_seconds,
        )  # fmt: skip
        self._patient_until = time.monotonic() + start_grace_seconds
        self._looked = self._viewed = time.monotonic()
        self._target: ReleaseTarget | None = None
        self._routed: Pointer | None = None
        self._pointers: tuple[Pointer, ...] = ()
        self._reading, self._peers = SlowReader(channel.read), SlowReader(channel.peers)
        self._readiness = Readiness(False, _STARTING)

    # ------------------------------------------------------------------------------------------------ for requests

    @contextlib.asynccontextmanager
    async def lease(self, key: str, deadline: Deadline) -> AsyncIterator[ReleaseTarget]:
        """Hold a release for the length of the block: the current one, or the canary for a key that is of its share.

        Raises:
            Unavailable: (`not_ready`) no release has been ready yet, or it was being replaced until the deadline;
                (`policy_unavailable`) no policy server is left.
        """
        target = self._canary.pick(key) or await self._handing_out.target(deadline)
        with self._ledger.holding(target.release):
            yield target

    def counted_as(self, target: ReleaseTarget) -> CountedAs:
        """What a release that was leased is now; a canary stays one while the channel names it, ready or not."""
        if target.role is ReleaseRole.CANARY:
            return CountedAs.CANARY if self._canary.names(target.release) else CountedAs.OLD
        current = self._target
        return CountedAs.CURRENT if current and current.release == target.release else CountedAs.OLD

    def current(self) -> ReleaseTarget | None:
        """What new jobs use; None before the first release was ready."""
        return self._target

    def canary(self) -> CanaryView | None:
        """What the channel names for a share of the requests, and how it stands here."""
        return self._canary.view()

    def serving(self) -> ReleaseTarget | None:
        """What new jobs use, as long as a policy server and a reward service of it answer."""
        target = self._target
        return target if target and target.policy_endpoints and target.reward_endpoints else None

    def readiness(self) -> Readiness:
        """The cached verdict for `/readyz`, and how the canary stands."""
        found, canary = self._readiness, self._canary.view()
        if canary is None:
            return found
        shown = {"release": canary.release, "state": canary.state.value, "reason": canary.reason}
        return replace(found, details={**found.details, "canary": shown})

    # ------------------------------------------------------------------------------------------ in the background

    async def run(self) -> None:
        """Poll and publish until cancelled; then say once more what is leased."""
        await self.look_back()
        publishing = asyncio.create_task(self._ledger.publish_forever(), name="publish leases")
        try:
            while True:
                try:
                    await self.poll()
                except Exception:  # a gateway that stopped looking would never flip again: say it, and look again
                    self._metrics.polls_failed.inc()
                    _log.exception("a look at channel and replicas failed; this is a bug")
                await asyncio.sleep(self._poll_seconds)
        finally:
            publishing.cancel()
            await self._canary.close()
            await asyncio.wait({publishing})
            await self._ledger.publish()

    async def look_back(self) -> None:
        """Remember by what gateways routed last: before this one's own record is written anew."""
        with contextlib.suppress(ServiceError):  # then the grace time is waited for
            self._routed = next(iter(await self._peers.result()), None)

    async def poll(self) -> None:
        """Look once at everything and act on it; what is wrong with what it sees is in the verdict."""
        problem = ""
        try:
            self._pointers = await self._reading.result()
        except ServiceError as error:
            self._metrics.polls_failed.inc()
            problem = f"channel: {error.message}"
        self._looked = looked = time.monotonic()
        newest = self._pointers[0] if self._pointers else None
        self._canary.name(newest)
        await asyncio.gather(self._policy.refresh(), self._reward.refresh())
        problem = problem or await self._follow()
        await self._refresh_target()
        if self._policy.fresh() and self._reward.fresh():
            self._viewed = looked
        self._handing_out.follow()
        self._readiness = self._verdict(problem)
        self._canary.follow(newest, self._target, looked)  # last, and never waiting: it holds up nothing of the above

    # --------------------------------------------------------------------------------------------------- decisions

    async def _follow(self) -> str:
        """Move to the channel's release if it may be; otherwise say why not."""
        if not self._pointers:
            return "nothing was promoted on the channel yet"
        newest, *before = self._pointers
        if self._target and self._target.release == newest.release:
            if self._target.generation != newest.generation:
                self._set(replace(self._target, generation=newest.generation))
            return ""
        problem = await self._adopt(newest, ADOPTABLE)
        if problem and (self._target is not None or self._impatient()):
            await self._follow_others(newest, before)
        elif problem and self._routed is not None and self._routed.generation < newest.generation:
            await self._adopt_older(self._routed, newest)
        return problem

    async def _follow_others(self, newest: Pointer, before: Sequence[Pointer]) -> None:
        """Step forward to what another gateway routes by: replicas keep two versions, and wait for both of us.

        A gateway that starts has nothing to stay on, and takes what was named before the newest, too.
        """
        past, others = (self._target.generation, ()) if self._target else (0, tuple(before))
        with contextlib.suppress(ServiceError):  # who cannot read it stays; the agents say what they wait for
            others = (*others, *await self._peers.result())
        for other in others:
            if past < other.generation < newest.generation and not await self._adopt_older(other, newest):
                return

    async def _adopt_older(self, older: Pointer, newest: Pointer) -> str:
        """Move to a release that is no longer named, unless a replica gives it up."""
        kinds = ((self._policy, older.policy, newest.policy), (self._reward, older.reward, newest.reward))
        if any(replicas.gave_up(version, instead) for replicas, version, instead in kinds):
            return f"release {older.release}: it is being given up"
        return await self._adopt(older, SERVING)

    async def _adopt(self, pointer: Pointer, states: frozenset[SlotState]) -> str:
        """Make a release the current one, or say why it cannot be."""
        reason = self._missing(self._policy, pointer.policy, states) or self._missing(
            self._reward, pointer.reward, states
        )
        if reason:
            return f"release {pointer.release}: {reason}"
        try:
            await self._encoders.load(pointer.policy, manifest_sha256=pointer.policy_manifest_sha256)
            target = await self._endpoints.locate(pointer, strict=True)
        except (ServiceError, TemplateError, OSError, ValueError) as error:
            return f"release {pointer.release}: {error}"
        if not target.policy_endpoints or not target.reward_endpoints:
            return f"release {pointer.release}: no replica of both kinds answers"
        if time.monotonic() - self._looked > _VIEW_SECONDS:
            return f"release {pointer.release}: what the replicas said is too old by now; asking them again"
        _log.info("new jobs use another release", extra={"release": pointer.release, "generation": pointer.generation})
        self._set(target)
        return ""

    def _missing(self, replicas: ReplicaWatch, version: str, states: frozenset[SlotState]) -> str:
        """Which replica keeps a version from being used, in words; empty when none does."""
        for url in replicas.urls:
            if not replicas.answering(url):
                if self._target is None and self._impatient():
                    continue
                return f"{url} does not answer"
            slot = replicas.slot(url, version)
            if slot is None:
                return f"{url} does not have {version} yet"
            if slot.state not in states:
                return f"{url} has {version} in state {slot.state.value}" + (f": {slot.reason}" if slot.reason else "")
            if slot.gated:
                return f"{url} makes room, and takes no new jobs for {version}"
        return ""

    def _impatient(self) -> bool:
        return time.monotonic() > self._patient_until

    async def _refresh_target(self) -> None:
        """Where the current release is served now."""
        current = self._target
        if current is None:
            return
        pointer = Pointer(current.release, current.generation, current.policy, current.reward, "")
        self._set(await self._endpoints.locate(pointer, strict=False))
        self._capacities(self._endpoints.capacities(current.policy))

    # ----------------------------------------------------------------------------------------------------- the rest

    def _set(self, target: ReleaseTarget) -> None:
        if target == self._target:
            return
        moved = self._target is None or self._target.generation != target.generation
        self._target = target
        self._handing_out.follow()
        if moved:
            self._endpoints.forget_all_but(target.policy, self._canary.policy)
            self._metrics.release_generation.set(target.generation)
            self._metrics.model_info.clear()
            self._metrics.model_info.labels("policy", target.policy).set(1)
            self._metrics.model_info.labels("reward", target.reward).set(1)
            self._ledger.note_change()

    def _verdict(self, problem: str) -> Readiness:
        replicas = {"policy_replicas": self._policy.describe(), "reward_replicas": self._reward.describe()}
        return verdict(problem, self._target, self._handing_out.making_room, replicas)
