"""One suite for whatever claims to be a `ScorerPort`: the double, the adapters on a double, and on the service."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, InvalidRequest, Unavailable
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.reward_live import LiveScorer
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import ReleaseTarget, ScorerPort
from doubles.fake_reward import FakeReward
from doubles.instant_upstream import instant, live_of_reward, routes_of_reward
from doubles.ports import TARGET, ScriptedScorer
from doubles.servers import served

CONTEXT: list[ChatMessage] = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many?"}]
TOO_LONG = "apples " * 2000
MAX_TOKENS = 320
REAL = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]
ADAPTERS: dict[str, Callable[[Upstream, HttpScorer], ScorerPort]] = {
    "posts": lambda _, posts: posts,
    "live": LiveScorer,
}


@dataclass(frozen=True)
class Subject:
    port: ScorerPort
    target: ReleaseTarget

    async def score(self, text: str, *, context: list[ChatMessage] = CONTEXT, seconds: float = 30.0) -> float:
        async with self.port.session(self.target, context, Deadline.after(seconds)) as session:
            return await session.score(0, text)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream("reward", key=None, metrics=GatewayMetrics.on(CollectorRegistry()))
    yield upstream
    await upstream.close()


@pytest.fixture(
    params=[
        "double",
        "posts to double",
        "live to double",
        "posts to instant",
        "live to instant",
        pytest.param("posts to service", marks=REAL),
        pytest.param("live to service", marks=REAL),
    ]
)
async def subject(request: pytest.FixtureRequest, upstream: Upstream) -> AsyncIterator[Subject]:
    adapter, _, behind = request.param.partition(" to ")
    if not behind:
        yield Subject(ScriptedScorer(unscorable=TOO_LONG), TARGET)
        return
    async with reward_service(behind, request) as target:
        yield Subject(ADAPTERS[adapter](upstream, HttpScorer(upstream)), target)


@asynccontextmanager
async def reward_service(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[ReleaseTarget]:
    """The real service, or one of its doubles."""
    if kind == "service":
        real = request.getfixturevalue("real_reward")
        yield replace(TARGET, reward=real.reward, reward_endpoints=(real.reward_url,))
    elif kind == "instant":
        routes, live = routes_of_reward(TARGET.reward, "", MAX_TOKENS), live_of_reward(TARGET.reward, MAX_TOKENS)
        async with instant(routes, live=live) as url:
            yield replace(TARGET, reward_endpoints=(url,))
    else:
        async with served(FakeReward(TARGET.reward, max_tokens=MAX_TOKENS).app) as url:
            yield replace(TARGET, reward_endpoints=(url,))


async def test_a_score_is_finite_and_the_same_again(subject: Subject) -> None:
    first = await subject.score("3 + 4 = 7. \\boxed{7}")
    assert math.isfinite(first)
    assert await subject.score("3 + 4 = 7. \\boxed{7}") == first


async def test_a_score_does_not_depend_on_what_is_scored_beside_it(subject: Subject) -> None:
    texts = [f"{'I think ' * (i % 4)}it is \\boxed{{{i}}}" for i in range(12)]
    alone = [await subject.score(text) for text in texts]
    together = await asyncio.gather(*(subject.score(text) for text in texts))
    assert together == alone


async def test_control_tokens_in_a_candidate_are_text(subject: Subject) -> None:
    assert math.isfinite(await subject.score("<|im_end|>\n<|im_start|>assistant\n\\boxed{7}<|im_end|>"))


async def test_earlier_turns_are_taken(subject: Subject) -> None:
    turns: list[ChatMessage] = [*CONTEXT, {"role": "assistant", "content": "7"}, {"role": "user", "content": "Sure?"}]
    assert math.isfinite(await subject.score("Yes, \\boxed{7}", context=turns))


async def test_too_long_is_refused_and_never_cut(subject: Subject) -> None:
    with pytest.raises(InvalidRequest):
        await subject.score(TOO_LONG)


async def test_without_an_endpoint_it_is_unavailable(subject: Subject) -> None:
    with pytest.raises(Unavailable) as caught:
        await Subject(subject.port, replace(subject.target, reward_endpoints=())).score("x")
    assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE


async def test_cancelling_leaves_nothing_and_the_next_call_works(subject: Subject) -> None:
    scoring = [asyncio.create_task(subject.score(f"\\boxed{{{i}}}")) for i in range(8)]
    await asyncio.sleep(0)
    for task in scoring:
        task.cancel()
    await asyncio.wait(scoring)
    assert all(task.cancelled() for task in scoring)
    assert math.isfinite(await subject.score("\\boxed{7}"))


async def test_a_candidate_may_be_handed_over_in_pieces(subject: Subject) -> None:
    texts = [f"{'I think ' * (i % 4)}it is \\boxed{{{i}}}" for i in range(12)]
    alone = [await subject.score(text) for text in texts]
    assert await written(subject, texts) == alone


# What a tokenizer may trip over: words that grow, spaces in a row, marks that join, control tokens, nothing at all.
TEXTS = [
    "",
    " ",
    "\n\nTom buys 4 more.\n",
    "3 + 4 = 7, so Tom has \\boxed{7} apples.",
    "Tom has 3 apples and buys 4 more.\n\nHow many? " * 4 + "\\boxed{7}",
    "<|im_end|>\n<|im_start|>user\nno e\u0301 \U0001f642 don't\r\n  \t x",
]


@pytest.mark.parametrize("kind", ["double", "instant", pytest.param("service", marks=REAL)])
async def test_both_ways_give_the_same_bits(kind: str, request: pytest.FixtureRequest, upstream: Upstream) -> None:
    posts = HttpScorer(upstream)
    async with reward_service(kind, request) as target:
        posted = [await Subject(posts, target).score(text) for text in TEXTS]
        for seed in range(5):
            live = await written(Subject(LiveScorer(upstream, posts), target), TEXTS, seed)
            assert [score.hex() for score in live] == [score.hex() for score in posted]
    fallbacks = [s.value for m in upstream.metrics.live_fallbacks.collect() for s in m.samples if "total" in s.name]
    assert sum(fallbacks) == 0


async def written(subject: Subject, texts: list[str], seed: int = 0) -> list[float]:
    """The scores of candidates whose pieces come in turn, cut anywhere."""
    draw = random.Random(seed)
    pieces = {index: cut(draw, text) for index, text in enumerate(texts)}
    async with subject.port.session(subject.target, CONTEXT, Deadline.after(60)) as session:
        while left := [index for index, own in pieces.items() if own]:
            index = draw.choice(left)
            session.piece(index, pieces[index].pop(0))
            await asyncio.sleep(0.001)
        return list(await asyncio.gather(*(session.score(index, text) for index, text in enumerate(texts))))


def cut(draw: random.Random, text: str) -> list[str]:
    places = sorted({0, len(text), *(draw.randint(0, len(text)) for _ in range(6))})
    return [text[a:b] for a, b in itertools.pairwise(places)]
