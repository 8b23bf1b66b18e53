"""Who is killed, and when: every pair that makes sense, the most valuable first; of the others, why not."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Victim(enum.StrEnum):
    """Who gets the SIGKILL."""

    NOBODY = "nobody"  # the same swap without a kill: what the others are compared with
    PUBLISHER = "publisher"
    AGENT = "policy agent"
    NEW_VLLM = "new vLLM"
    OLD_VLLM = "old vLLM"
    REWARD = "reward service"
    GATEWAY = "gateway"
    REDIS = "Redis"


class Stage(enum.StrEnum):
    """A state of a swap, in their order; some of them overlap."""

    PUBLISHING = "publishing"
    HALF_PUBLISHED = "half published"
    PROMOTED = "promoted"
    POLICY_LOADING = "policy loading"
    REWARD_LOADING = "reward loading"
    ONE_READY = "one ready"
    DRAINING = "draining"
    STOPPING = "stopping"


MEANS = {
    Stage.PUBLISHING: "a publisher's folder is in the registry, and the release is not promoted",
    Stage.HALF_PUBLISHED: "one of its two versions is published, and the release is not promoted",
    Stage.PROMOTED: "the channel names it, and nothing of it is being loaded (its copy may be verified)",
    Stage.POLICY_LOADING: "its policy is `staging` or `warming`",
    Stage.REWARD_LOADING: "its reward model is `staging` or `warming`",
    Stage.ONE_READY: "one of its two versions is ready, the other is not",
    Stage.DRAINING: "the gateway routes by it, and the old policy drains",
    Stage.STOPPING: "the old policy's server was told to stop, and has not ended",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One kill of the matrix."""

    victim: Victim
    stage: Stage

    def __str__(self) -> str:
        return f"{self.victim} @ {self.stage}"


_SERVICES = (Victim.AGENT, Victim.REWARD, Victim.GATEWAY, Victim.REDIS)
_TURNS: tuple[tuple[Stage, tuple[Victim, ...]], ...] = (
    (Stage.PROMOTED, (Victim.NOBODY,)),
    # each part once, where most hangs on it
    (Stage.DRAINING, (Victim.GATEWAY, Victim.AGENT)),
    (Stage.POLICY_LOADING, (Victim.NEW_VLLM, Victim.AGENT)),
    (Stage.ONE_READY, (Victim.REWARD,)),
    (Stage.PUBLISHING, (Victim.PUBLISHER,)),
    (Stage.DRAINING, (Victim.OLD_VLLM, Victim.REDIS)),
    # where two versions are there, and who routes changes
    (Stage.HALF_PUBLISHED, (Victim.PUBLISHER,)),
    (Stage.ONE_READY, (Victim.GATEWAY, Victim.AGENT)),
    (Stage.DRAINING, (Victim.REWARD, Victim.NEW_VLLM)),
    (Stage.STOPPING, (Victim.AGENT, Victim.OLD_VLLM, Victim.GATEWAY)),
    (Stage.POLICY_LOADING, (Victim.OLD_VLLM, Victim.GATEWAY, Victim.REWARD)),
    (Stage.REWARD_LOADING, (Victim.REWARD,)),
    # the rest
    (Stage.PROMOTED, (Victim.GATEWAY, Victim.AGENT, Victim.REWARD)),
    (Stage.ONE_READY, (Victim.NEW_VLLM, Victim.OLD_VLLM, Victim.REDIS)),
    (Stage.STOPPING, (Victim.REWARD, Victim.NEW_VLLM, Victim.REDIS)),
    (Stage.REWARD_LOADING, (Victim.AGENT, Victim.GATEWAY, Victim.NEW_VLLM, Victim.OLD_VLLM, Victim.REDIS)),
    (Stage.POLICY_LOADING, (Victim.REDIS,)),
    (Stage.PROMOTED, (Victim.OLD_VLLM, Victim.REDIS)),
    (Stage.PUBLISHING, (*_SERVICES, Victim.OLD_VLLM)),
)
CELLS = tuple(Cell(victim, stage) for stage, victims in _TURNS for victim in victims)
"""Every cell once, in the order in which they are run."""


def left_out(victim: Victim, stage: Stage) -> str | None:
    """Why a pair is no cell; None when it is one."""
    if Cell(victim, stage) in CELLS:
        return None
    if victim is Victim.NOBODY:
        return "measured once"
    if victim is Victim.PUBLISHER:
        return "it has ended: promoting is its last step, one rename"
    if stage is Stage.HALF_PUBLISHED:
        return "as publishing: nobody but the publisher knows of it"
    return "it is started when the policy loads"
