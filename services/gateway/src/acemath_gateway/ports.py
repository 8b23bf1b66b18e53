"""What the gateway needs from the world, in its own words; met by `adapters/` and, in tests, by doubles.

PolicyPort        candidates of one prompt, as events per candidate index
ScorerPort        the scores of one job's candidates
SequenceLimit     the shared bound on sequences in flight
IdempotencyStore  one answer for one key, however often it is asked for
AnswerStore       answers that may be given again
LeaseStore        who still uses which release
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from acemath_core.deadline import Deadline
from acemath_core.prompts import ChatMessage
from acemath_core.wire import FinishReason


@dataclass(frozen=True, slots=True)
class Sampling:
    """How candidates are drawn; candidate i uses `seed + i`."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokensGenerated:
    """Some more tokens of candidate `index`; `text` is what they add."""

    index: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CandidateFinished:
    """Candidate `index` is complete.

    Attributes:
        text: the whole text.
        token_ids: the whole sequence of generated ids, the end-of-turn token included if the policy sent it.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class CandidateFailed:
    """Candidate `index` will not come."""

    index: int
    reason: str


PolicyEvent = TokensGenerated | CandidateFinished | CandidateFailed


class Candidates(Protocol):
    """Candidates that are being made, each of which can be ended alone."""

    def events(self) -> AsyncGenerator[PolicyEvent, None]:
        """What `PolicyPort.generate` gives, and raises; asked for once."""
        ...

    def stop(self, index: int) -> None:
        """End candidate `index`, which is generated no further: what was may still come, its end does not."""
        ...


class PolicyPort(Protocol):
    """Samples candidates. Closing the iterator (or cancelling its task) aborts generation upstream."""

    def generate(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncGenerator[PolicyEvent, None]:
        """Events of `sampling.n` candidates, in the order in which they happen.

        Raises:
            Unavailable: (`policy_unavailable`) nothing could be had from any replica.
            InvalidRequest: the policy refused the prompt, e.g. as too long.
        """
        ...

    def generate_apart(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AbstractAsyncContextManager[Candidates]:
        """The same candidates in a way that lets single ones be ended, which costs more than `generate`.

        Leaving the block aborts what is still generated. Entering it raises nothing.
        """
        ...


class ScoringSession(Protocol):
    """Scores the candidates of one job, told of each while it is being written."""

    def piece(self, index: int, text: str) -> None:
        """What candidate `index` goes on with. Never waits and never fails; a scorer may have no use for it."""
        ...

    async def peek(self, index: int) -> float | None:
        """The score that the text of candidate `index` so far would have as a whole one, in the same bits.

        Asked for before `score` is, and again only after it was given. None when it cannot be had: the scorer has not
        seen the pieces, or cannot say, or the candidate got its score meanwhile. It waits as long as the scorer takes;
        cancelling costs nothing but this answer.
        """
        ...

    def drop(self, index: int) -> None:
        """Candidate `index` was stopped: no more is said or asked of it. Never waits and never fails."""
        ...

    async def score(self, index: int, candidate: str) -> float:
        """The raw score of candidate `index`, which is complete; asked for once.

        Its pieces, in order, are how the candidate begins; there need not be any. Cancelling the call takes the
        candidate out of the scorer's queue; where several were sent together, cancelling all of theirs does.

        Raises:
            Unavailable: (`reward_unavailable`, `reward_overloaded`) no replica could score it in time.
            DeadlineExceeded: none did before the deadline.
            InvalidRequest: the candidate cannot be scored, e.g. it is too long for the reward model.
        """
        ...


class ScorerPort(Protocol):
    """Scores candidates."""

    def session(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> AbstractAsyncContextManager[ScoringSession]:
        """Score candidates that answer the same turns (without any system text) for the length of the block.

        Entering and leaving wait for no other service and raise nothing of their own; leaving gives up what is not
        scored.
        """
        ...


class ReleaseRole(StrEnum):
    """What a release is to the channel that names it."""

    CURRENT = "current"
    CANARY = "canary"  # it gets a share of the requests


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    """One release and where it is served.

    Attributes:
        release: release id.
        generation: the channel's generation that named it.
        policy: policy version, name@version.
        reward: reward version, name@version.
        policy_endpoints: base URLs of vLLM servers that serve `policy`.
        reward_endpoints: base URLs of reward services that serve `reward`.
        context_length: tokens of prompt and completion together that every policy endpoint takes; None when unknown.
        role: the current release, or one that gets a share beside it.
    """

    release: str
    generation: int
    policy: str
    reward: str
    policy_endpoints: tuple[str, ...]
    reward_endpoints: tuple[str, ...]
    context_length: int | None = None
    role: ReleaseRole = ReleaseRole.CURRENT


class LimitOutcome(StrEnum):
    """Who granted or refused a request's sequences."""

    SHARED = "shared"  # the limit that all gateways share
    LOCAL = "local"  # this gateway's own limit, because the shared store is away


class SequenceLimit(Protocol):
    """Bounds the sequences in flight over all gateways."""

    def hold(
        self, request_id: str, sequences: int, deadline: Deadline, *, spare_only: bool = False
    ) -> AbstractAsyncContextManager[LimitOutcome]:
        """Hold `sequences` places for the length of the block.

        A request larger than all of them gets them when nothing else is there. With `spare_only`, take of a share of
        the places only, and only while nobody else was refused a moment ago: the others' places are left to them.

        Raises:
            Unavailable: (`overloaded`, with `Retry-After`) the places are taken.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished answer under an idempotency key: status and body as they were sent."""

    status: int
    body: bytes


class IdempotencyStore(Protocol):
    """One answer for one key."""

    async def begin(self, key: str, fingerprint: str, deadline: Deadline) -> Stored | None:
        """Claim the key, or give the answer that it already has; waits while another request works on it.

        Raises:
            Conflict: (`idempotency_conflict`) the key was used with another body.
            Unavailable: (`idempotency_unavailable`) the store is away: a promise that cannot be kept is not made.
            DeadlineExceeded: the other request did not finish in time.
        """
        ...

    async def finish(self, key: str, fingerprint: str, answer: Stored) -> None:
        """Keep the answer for the key's lifetime."""
        ...

    async def abandon(self, key: str, fingerprint: str) -> None:
        """Free the key: the request failed in a way that a retry may mend."""
        ...


MAX_CACHE_SECONDS = 604_800
"""No answer is given again later than that."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer's body as it was sent, the release that made it, and how long ago."""

    body: bytes
    release: str
    age_seconds: float


class AnswerStore(Protocol):
    """Answers that may be given again, for a while."""

    async def get(self, key: str) -> KeptAnswer | None:
        """The answer under `key`. Raises Unavailable: the store is away."""
        ...

    async def put(self, key: str, body: bytes, release: str) -> None:
        """Keep an answer, or not: one that is too large, or while the store is away. Never raises."""
        ...


class LeaseStore(Protocol):
    """Tells everybody which releases this gateway still works with."""

    async def assert_leases(
        self, generation: int, release: str | None, counts: dict[str, int], viewed: float | None = None
    ) -> None:
        """Publish this gateway's leases per release; called on change and as a heartbeat. Never raises.

        Args:
            generation: the channel's generation that new jobs use, 0 before the first release.
            release: the release that they use, None before the first.
            counts: release → leases on it.
            viewed: Unix time when the replicas began to be asked for what new leases are given by, None for not known;
                for who stops versions, so a store that none of those reads leaves it out.
        """
        ...
