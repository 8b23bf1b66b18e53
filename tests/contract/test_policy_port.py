"""One suite for whatever claims to be a `PolicyPort`: the double, the adapter on vLLM's double, the adapter on vLLM.

Each of them both ways: all candidates together, and apart, so that single ones can be stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_core.wire import FinishReason
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import (
    CandidateFailed,
    CandidateFinished,
    PolicyEvent,
    PolicyPort,
    ReleaseTarget,
    Sampling,
    TokensGenerated,
)
from doubles.fake_vllm_server import FakeServer, Tokens
from doubles.instant_upstream import instant, routes_of_policy
from doubles.ports import TARGET, ScriptedPolicy
from doubles.servers import served, until

PROMPT = [3, 70, 71, 72]
REAL = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Subject:
    port: PolicyPort
    target: ReleaseTarget
    apart: bool = False

    async def ask(self, *, prompt: list[int] = PROMPT, seconds: float = 60.0, **changes: Any) -> list[PolicyEvent]:
        async with self.asked(prompt, seconds, **changes) as events:
            return [event async for event in events]

    @asynccontextmanager
    async def asked(
        self, prompt: list[int], seconds: float, **changes: Any
    ) -> AsyncIterator[AsyncGenerator[PolicyEvent, None]]:
        asked = (self.target, prompt, a_sampling(**changes), Deadline.after(seconds))
        if self.apart:
            async with self.port.generate_apart(*asked) as candidates, aclosing(candidates.events()) as events:
                yield events
        else:
            async with aclosing(self.port.generate(*asked)) as events:
                yield events


def a_sampling(**changes: Any) -> Sampling:
    return Sampling(**({"n": 3, "temperature": 1.0, "top_p": 0.9, "max_tokens": 12, "seed": 5} | changes))


@pytest.fixture(params=["together", "apart"])
def subject(whole: Subject, request: pytest.FixtureRequest) -> Subject:
    return replace(whole, apart=request.param == "apart")


@pytest.fixture(params=["double", "adapter", "instant", pytest.param("vllm", marks=REAL)])
async def whole(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    target = replace(TARGET, context_length=512)
    if request.param == "double":
        yield Subject(ScriptedPolicy(token_seconds=0.001), target)
        return
    upstream = Upstream("policy", key=None, metrics=GatewayMetrics.on(CollectorRegistry()))
    try:
        if request.param == "vllm":
            real = request.getfixturevalue("real_stack")
            target = replace(target, policy=real.policy, policy_endpoints=(real.vllm_url,))
            yield Subject(VllmPolicy(upstream), target)
        elif request.param == "instant":
            async with instant(routes_of_policy(target.policy, "", context_length=512)) as url:
                yield Subject(VllmPolicy(upstream), replace(target, policy_endpoints=(url,)))
        else:
            server = FakeServer(target.policy, target.policy, 512, Tokens.of(Path("/nonexistent")))
            async with served(server.app()) as url:
                yield Subject(VllmPolicy(upstream), replace(target, policy_endpoints=(url,)))
    finally:
        await upstream.close()


async def test_each_candidate_ends_once_and_its_parts_make_the_whole(subject: Subject) -> None:
    events = await subject.ask(n=4)
    done = [event for event in events if isinstance(event, CandidateFinished)]
    assert sorted(event.index for event in done) == [0, 1, 2, 3]
    assert not any(isinstance(event, CandidateFailed) for event in events)
    for end in done:
        mine = [e for e in events if isinstance(e, TokensGenerated | CandidateFinished) and e.index == end.index]
        assert mine[-1] is end
        parts = [event for event in mine if isinstance(event, TokensGenerated)]
        assert "".join(part.text for part in parts) == end.text
        assert tuple(token for part in parts for token in part.token_ids) == end.token_ids
        assert 1 <= len(end.token_ids) <= 12


async def test_max_tokens_ends_a_candidate_by_length(subject: Subject) -> None:
    events = await subject.ask(n=2, max_tokens=1)
    done = [event for event in events if isinstance(event, CandidateFinished)]
    assert [len(event.token_ids) for event in done] == [1, 1]
    cut = [event.finish_reason for event in done if event.text]  # without text, its one token was the end of turn
    assert cut and set(cut) == {FinishReason.LENGTH}


async def test_greedy_is_one_candidate_and_the_same_again(subject: Subject) -> None:
    texts = []
    for _ in range(2):
        (done,) = [e for e in await subject.ask(n=1, temperature=0.0) if isinstance(e, CandidateFinished)]
        texts.append(done.text)
    assert texts[0] == texts[1]


async def test_sixty_four_candidates(subject: Subject) -> None:
    events = await subject.ask(n=64, max_tokens=4)
    assert sorted(e.index for e in events if isinstance(e, CandidateFinished)) == list(range(64))


async def test_a_prompt_that_does_not_fit_is_refused(subject: Subject) -> None:
    with pytest.raises(InvalidRequest):
        await subject.ask(prompt=[70] * 600)


async def test_without_an_endpoint_it_is_unavailable(subject: Subject) -> None:
    with pytest.raises(Unavailable) as caught:
        await replace(subject, target=replace(subject.target, policy_endpoints=())).ask()
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE


async def test_closing_early_ends_it_and_the_next_call_works(subject: Subject) -> None:
    before = asyncio.all_tasks()
    for _ in range(3):
        async with subject.asked(PROMPT, 60, n=8, max_tokens=200) as events:
            await anext(events)
    await until(lambda: len(asyncio.all_tasks() - before) <= 4)  # connections of the adapter's own server at most
    assert len([e for e in await subject.ask(n=2) if isinstance(e, CandidateFinished)]) == 2


async def test_a_deadline_that_has_passed_gives_nothing(subject: Subject) -> None:
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await subject.ask(seconds=0.0)


async def test_stopping_one_candidate_ends_it_alone(whole: Subject) -> None:
    sampling = a_sampling(n=4, max_tokens=64)
    asked = (whole.target, PROMPT, sampling, Deadline.after(60))
    heard: list[PolicyEvent] = []
    async with whole.port.generate_apart(*asked) as candidates, aclosing(candidates.events()) as events:
        heard.append(await anext(events))
        candidates.stop(2)
        heard += [event async for event in events]
    assert all(isinstance(event, TokensGenerated) for event in heard if event.index == 2)
    assert sorted(event.index for event in heard if isinstance(event, CandidateFinished)) == [0, 1, 3]
    assert not any(isinstance(event, CandidateFailed) for event in heard)


async def test_when_all_are_stopped_there_is_nothing_more(whole: Subject) -> None:
    asked = (whole.target, PROMPT, a_sampling(n=3, max_tokens=64), Deadline.after(60))
    async with whole.port.generate_apart(*asked) as candidates, aclosing(candidates.events()) as events:
        await anext(events)
        for index in range(3):
            candidates.stop(index)
            candidates.stop(index)
        assert [event async for event in events if not isinstance(event, TokensGenerated)] == []
    assert len([e for e in await whole.ask(n=2) if isinstance(e, CandidateFinished)]) == 2
