"""The gateway's ports in memory: deterministic, faults on request; `tests/contract` holds them to the real ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from acemath_answers import Verdict
from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, ServiceError, Unavailable
from acemath_core.prompts import ChatMessage
from acemath_core.wire import FinishReason, Slot, SlotState
from acemath_gateway.ports import (
    CandidateFailed,
    CandidateFinished,
    PolicyEvent,
    ReleaseTarget,
    Sampling,
    TokensGenerated,
)
from acemath_gateway.release_figures import CountedAs

POLICY, REWARD = "p@s1-000000000001", "r@s1-000000000002"
TARGET = ReleaseTarget("r-000000000001", 1, POLICY, REWARD, ("http://policy.test",), ("http://reward.test",), 2048)
SCRIPT = ("3 times 8 is 24. \\boxed{24}", "8 + 8 + 8 = 24, so the answer is \\boxed{24}.", "3 + 8 = 11. \\boxed{11}")


@dataclass
class ScriptedPolicy:
    """Candidate i recites `script[(seed + i) % len(script)]`, one word a token, all candidates in step.

    Attributes:
        script: the texts.
        token_seconds: pause before each step.
        gate: each step waits for it.
        fail: index → reason, for candidates that fail at their first token.
        break_after: steps after which the connection breaks: what is open fails.
        hang_after: steps after which nothing comes any more.
        error: raised instead of anything.
        calls: what was asked.
        running: candidates being generated now.
        aborted: calls that were closed before their end.
        apart: calls whose candidates could be stopped.
        stopped: candidates that were.
    """

    script: Sequence[str] = SCRIPT
    token_seconds: float = 0.0
    gate: asyncio.Event | None = None
    fail: dict[int, str] = field(default_factory=dict)
    break_after: int | None = None
    hang_after: int | None = None
    error: ServiceError | None = None
    calls: list[tuple[tuple[int, ...], Sampling]] = field(default_factory=list)
    running: int = 0
    aborted: int = 0
    apart: int = 0
    stopped: list[int] = field(default_factory=list)

    async def generate(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncGenerator[PolicyEvent, None]:
        async with aclosing(self._generate(release, prompt_ids, sampling, deadline, set())) as events:
            async for event in events:
                yield event

    @asynccontextmanager
    async def generate_apart(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncIterator[ScriptedCandidates]:
        self.apart += 1
        stopped: set[int] = set()
        async with aclosing(self._generate(release, prompt_ids, sampling, deadline, stopped)) as events:
            yield ScriptedCandidates(events, stopped)
        self.stopped += sorted(stopped)

    async def _generate(
        self,
        release: ReleaseTarget,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        deadline: Deadline,
        stopped: set[int],
    ) -> AsyncGenerator[PolicyEvent, None]:
        self.calls.append((tuple(prompt_ids), sampling))
        if self.error:
            raise self.error
        if not release.policy_endpoints:
            raise Unavailable("no policy server", code=ErrorCode.POLICY_UNAVAILABLE)
        if release.context_length is not None and len(prompt_ids) >= release.context_length:
            raise InvalidRequest("the prompt is too long", code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
        if deadline.expired():
            raise DeadlineExceeded("the deadline has passed")
        self.running += sampling.n
        ended = False
        try:
            async for event in self._recite(sampling, stopped):
                yield event
            ended = True
        finally:
            self.running -= sampling.n
            self.aborted += not ended

    async def _recite(self, sampling: Sampling, stopped: set[int]) -> AsyncIterator[PolicyEvent]:
        texts = [self.script[(sampling.seed + i) % len(self.script)] for i in range(sampling.n)]
        words = {i: _tokens(text) for i, text in enumerate(texts)}
        for i in [i for i in words if i in self.fail]:
            del words[i]
            yield CandidateFailed(i, self.fail[i])
        step = 0
        while words:
            if step == self.hang_after:
                await asyncio.sleep(3600)
            await (self.gate.wait() if self.gate else asyncio.sleep(self.token_seconds))
            if step == self.break_after:
                for i in words:
                    yield CandidateFailed(i, "broken")
                return
            for i in [i for i in words if i in stopped]:
                del words[i]
            for i in list(words):
                if i in stopped:  # since the step began
                    continue
                whole, limit = words[i], sampling.max_tokens
                yield TokensGenerated(i, whole[step], (100 + step,))
                made = whole[: step + 1]
                if step + 1 == len(whole) or step + 1 == limit:
                    reason = FinishReason.STOP if step + 1 == len(whole) else FinishReason.LENGTH
                    yield CandidateFinished(i, "".join(made), tuple(range(100, 101 + step)), reason)
                    del words[i]
            step += 1


@dataclass
class ScriptedCandidates:
    """`Candidates` of a scripted policy."""

    _events: AsyncGenerator[PolicyEvent, None]
    _stopped: set[int]

    async def events(self) -> AsyncGenerator[PolicyEvent, None]:
        async for event in self._events:
            yield event

    def stop(self, index: int) -> None:
        self._stopped.add(index)


def _tokens(text: str) -> list[str]:
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + words[-1:]


def length_score(text: str) -> float:
    """Shorter is better; distinct for texts of distinct length."""
    return -len(text) / 8


@dataclass
class ScriptedScorer:
    """Scores by a function of the candidate's text.

    Attributes:
        rule: text → score.
        seconds: how long one score takes.
        unscorable: texts that contain this are refused, with `refusal`.
        error: raised for every candidate from the `error_from`-th call on.
        error_from: see above, counted from 0.
        failing: the calls that raise `error` instead, where only some do.
        calls: the candidates that were asked for, in order.
        contexts: the turns that came with them.
        sessions: those that are open.
        told: the pieces of the last session's candidates, joined.
        blind: it gives no partial scores; it never gets to it.
        peeked: candidates of which one was asked for.
        dropped: candidates that are not wanted any more.
        running: scores being made now.
        cancelled: calls that were cancelled.
    """

    rule: Callable[[str], float] = length_score
    seconds: float = 0.0
    unscorable: str | None = None
    refusal: InvalidRequest = field(default_factory=lambda: InvalidRequest("candidates.0: bad", param="candidates.0"))
    error: ServiceError | None = None
    error_from: int = 0
    failing: set[int] | None = None
    calls: list[str] = field(default_factory=list)
    contexts: list[list[ChatMessage]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0
    sessions: int = 0
    told: dict[int, str] = field(default_factory=dict)
    blind: bool = False
    peeked: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    @asynccontextmanager
    async def session(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> AsyncIterator[ScriptedSession]:
        self.sessions += 1
        session = ScriptedSession(self, release, context, deadline)
        self.told = session.told
        try:
            yield session
        finally:
            self.sessions -= 1

    async def score(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], candidate: str, deadline: Deadline
    ) -> float:
        number = len(self.calls)
        self.calls.append(candidate)
        self.contexts.append(list(context))
        if not release.reward_endpoints:
            raise Unavailable("no reward service", code=ErrorCode.REWARD_UNAVAILABLE)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if self.error and (number >= self.error_from if self.failing is None else number in self.failing):
            raise self.error
        if self.unscorable and self.unscorable in candidate:
            raise self.refusal
        return self.rule(candidate)


@dataclass
class ScriptedSession:
    """`ScriptedScorer`'s session; holds its user to what `ScoringSession` says of pieces."""

    scorer: ScriptedScorer
    release: ReleaseTarget
    context: Sequence[ChatMessage]
    deadline: Deadline
    told: dict[int, str] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)

    def piece(self, index: int, text: str) -> None:
        assert index not in self.asked | self.gone, "a piece of a complete candidate, or of one that was dropped"
        self.told[index] = self.told.get(index, "") + text

    async def peek(self, index: int) -> float | None:
        self.scorer.peeked.append(index)
        if self.scorer.blind:
            await asyncio.sleep(3600)
        await asyncio.sleep(self.scorer.seconds)
        text = self.told.get(index)
        return None if text is None or index in self.asked | self.gone else self.scorer.rule(text)

    def drop(self, index: int) -> None:
        self.gone.add(index)
        self.scorer.dropped.append(index)

    async def score(self, index: int, candidate: str) -> float:
        assert index not in self.asked | self.gone and candidate.startswith(self.told.get(index, ""))
        self.asked.add(index)
        return await self.scorer.score(self.release, self.context, candidate, self.deadline)


@dataclass
class FixedRelease:
    """Always the same release; counts leases."""

    target: ReleaseTarget = TARGET
    error: ServiceError | None = None
    held: int = 0
    given: int = 0
    keys: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def lease(self, key: str, deadline: Deadline) -> AsyncIterator[ReleaseTarget]:
        self.keys.append(key)
        if self.error:
            raise self.error
        self.held += 1
        self.given += 1
        try:
            yield self.target
        finally:
            self.held -= 1

    def counted_as(self, target: ReleaseTarget) -> CountedAs:
        return CountedAs(target.role) if target.release == self.target.release else CountedAs.OLD


@dataclass
class BytePrompts:
    """Prompts as UTF-8 bytes; both `Encoders` and `PolicyPrompts`."""

    max_length: int = 4096

    async def of(self, version: str) -> BytePrompts:
        return self

    async def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        return list("".join(f"{m['role']}:{m['content']}\n" for m in messages).encode())


@dataclass
class TextJudge:
    """Answers are the same when their texts are."""

    calls: list[list[str | None]] = field(default_factory=list)
    verdicts: dict[frozenset[str], Verdict] = field(default_factory=dict)
    compared: int = 0

    async def aequivalent(self, a: str, b: str, *, deadline_s: float) -> Verdict:
        self.compared += 1
        return self.verdicts.get(frozenset({a, b}), Verdict.DIFFERENT)

    async def aclasses(self, answers: Sequence[str | None], *, deadline_s: float) -> list[int | None]:
        self.calls.append(list(answers))
        seen: dict[str, int] = {}
        return [None if answer is None else seen.setdefault(answer, len(seen)) for answer in answers]


@dataclass
class ScriptedSlots:
    """`SlotsPort` from dictionaries: url → version → state; a url that is not there does not answer.

    What drains at a url of `gated` makes room; a url of `stuck` computes nothing; `capacities` are
    max_sequences and cache_tokens of a url's slots.
    """

    states: dict[str, dict[str, SlotState]] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    capacities: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    async def slots(self, url: str) -> tuple[Slot, ...]:
        self.asked[url] += 1
        if url not in self.states:
            raise Unavailable(f"{url} cannot be reached")
        sequences, tokens = self.capacities.get(url, (None, None))
        return tuple(
            Slot(
                version=version, state=state, endpoint=self.endpoints.get(url, url), since=0.0,
                gated=url in self.gated and state is SlotState.DRAINING, stuck=url in self.stuck,
                max_sequences=sequences, cache_tokens=tokens,
            )
            for version, state in self.states[url].items()
        )  # fmt: skip

    async def context_length(self, endpoint: str, version: str) -> int:
        self.asked[endpoint] += 1
        if endpoint not in self.lengths:
            raise Unavailable(f"{endpoint} cannot be reached")
        return self.lengths[endpoint]


@dataclass
class MemoryLeases:
    """`LeaseStore` that remembers what it was told."""

    records: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    releases: list[str | None] = field(default_factory=list)

    async def assert_leases(
        self, generation: int, release: str | None, counts: dict[str, int], viewed: float | None = None
    ) -> None:
        self.records.append((generation, dict(counts)))
        self.releases.append(release)
