"""What a swap looks like from outside at one moment, and which of its states that is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from acemath_registry import Registry
from bench.swapkills.matrix import Stage

CHANNEL = "default"
_LOADING = frozenset({"staging", "warming"})
_SERVING = frozenset({"ready", "active", "draining"})
_NOT_YET = frozenset({None, "verifying"})
_ENDED = frozenset({"retired", "rejected"})
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A release's two versions, as name@version; None while it is not known."""

    policy: str | None
    reward: str | None
    release: str | None


@dataclass(frozen=True, slots=True)
class View:
    """One look.

    Attributes:
        staged: a publisher's folder is in the registry.
        published: how many of the new release's versions are.
        promoted: the channel no longer names the old release.
        routed: the release that the gateway gives to new requests; None: it does not say.
        policy: version → its slot at the policy agent; None: it does not answer.
        reward: the same of the reward service.
    """

    staged: bool = False
    published: int = 0
    promoted: bool = False
    routed: str | None = None
    policy: Mapping[str, dict[str, Any]] | None = field(default_factory=dict)
    reward: Mapping[str, dict[str, Any]] | None = field(default_factory=dict)

    def states(self, old: Pair, new: Pair) -> dict[str, str]:
        """For people: what each of the four versions is."""
        named = {
            "old policy": (self.policy, old.policy), "new policy": (self.policy, new.policy),
            "old reward": (self.reward, old.reward), "new reward": (self.reward, new.reward),
        }  # fmt: skip
        return {name: _state(slots, version) or "-" for name, (slots, version) in named.items()}

    def alone(self, pair: Pair) -> bool:
        """Whether both services answer, have this release's versions active and no others, and it is routed to."""
        slots = ((self.policy, pair.policy), (self.reward, pair.reward))
        return self.routed == pair.release and all(_only(found, version) for found, version in slots)

    def rejected(self, pair: Pair) -> bool:
        """Whether one of the two was rejected."""
        return "rejected" in (_state(self.policy, pair.policy), _state(self.reward, pair.reward))


def holds(stage: Stage, view: View, old: Pair, new: Pair) -> bool:
    """Whether a swap is in this state."""
    policy, reward = _state(view.policy, new.policy), _state(view.reward, new.reward)
    old_policy = (view.policy or {}).get(old.policy or "", {})
    drains = view.promoted and view.routed == new.release and old_policy.get("state") == "draining"
    return {
        Stage.PUBLISHING: not view.promoted and view.staged,
        Stage.HALF_PUBLISHED: not view.promoted and view.published == 1,
        Stage.PROMOTED: view.promoted and policy in _NOT_YET and reward in _NOT_YET,
        Stage.POLICY_LOADING: policy in _LOADING,
        Stage.REWARD_LOADING: reward in _LOADING,
        Stage.ONE_READY: (policy in _SERVING) != (reward in _SERVING),
        Stage.DRAINING: drains and old_policy.get("endpoint") is not None,
        Stage.STOPPING: drains and old_policy.get("endpoint") is None,
    }[stage]


def _state(slots: Mapping[str, dict[str, Any]] | None, version: str | None) -> str | None:
    return (slots or {}).get(version or "", {}).get("state")


def _only(slots: Mapping[str, dict[str, Any]] | None, version: str | None) -> bool:
    living = {name: slot["state"] for name, slot in (slots or {}).items() if slot["state"] not in _ENDED}
    return living == {version: "active"}


@dataclass(frozen=True, slots=True)
class Looker:
    """Looks at the registry and asks the services.

    Attributes:
        registry: of the stack, on this machine.
        gateway: a client of the gateway.
        services: a client that knows the key of the services.
        policy: base URL of the agent.
        reward: base URL of the reward service.
    """

    registry: Registry
    gateway: httpx.AsyncClient
    services: httpx.AsyncClient
    policy: str
    reward: str

    async def look(self, old: Pair, new: Pair) -> View:
        """Everything at once; who does not answer within two seconds is not there."""
        asked = (self._slots(self.policy), self._slots(self.reward), self._routed())
        policy, reward, routed = await asyncio.gather(*asked)
        return replace(self.glance(old, new), policy=policy, reward=reward, routed=routed)

    def glance(self, old: Pair, new: Pair) -> View:
        """What the registry alone shows, at once."""
        staging, models = self.registry.root / "staging", self.registry.root / "models"
        names = [version.replace("@", "/") for version in (new.policy, new.reward) if version]
        return View(
            staged=staging.is_dir() and any(staging.iterdir()),
            published=sum((models / name).is_dir() for name in names),
            promoted=self.registry.channel(CHANNEL).release != old.release,
        )

    async def _slots(self, url: str) -> dict[str, dict[str, Any]] | None:
        answer = await _get(self.services, f"{url}/v1/slots")
        return None if answer is None else {slot["version"]: slot for slot in answer}

    async def _routed(self) -> str | None:
        answer = await _get(self.gateway, "/v1/releases")
        return answer["data"][0]["id"] if answer and answer["data"] else None


async def _get(client: httpx.AsyncClient, url: str) -> Any:
    try:
        answer = await client.get(url, timeout=_ANSWER_SECONDS)
        return answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
