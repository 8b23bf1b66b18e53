"""Candidates that end together are scored by one call; what becomes of each is what would have, had it been alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_gateway.adapters import reward_http
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.reward_http import HttpScorer, HttpSession
from acemath_gateway.metrics import CallResult, GatewayMetrics
from acemath_gateway.ports import ReleaseTarget
from doubles.fake_reward import FakeReward, score_of
from doubles.ports import TARGET
from doubles.servers import RawServer, Script, nothing_left, served, settled, until, until_closed, unused_url

TEXTS = [f"it is \\boxed{{{i}}}" for i in range(5)]
SCORES = [score_of(text) for text in TEXTS]
TOO_LONG = "word " * 40
Got = float | BaseException


class Rig:
    """The adapter and what it counts."""

    def __init__(self, **options: float) -> None:
        self.registry = CollectorRegistry()
        self.upstream = Upstream("reward", key=None, metrics=GatewayMetrics.on(self.registry))
        self.scorer = HttpScorer(self.upstream, **options)  # type: ignore[arg-type]

    @asynccontextmanager
    async def session(self, *endpoints: str, seconds: float = 20.0) -> AsyncIterator[HttpSession]:
        target = ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, (), endpoints)
        async with self.scorer.session(
            target, [{"role": "user", "content": "3 * 8?"}], Deadline.after(seconds)
        ) as made:
            yield made

    async def together(self, *endpoints: str, texts: Sequence[str] = TEXTS, seconds: float = 20.0) -> list[Got]:
        """What becomes of candidates that end in the same turn."""
        async with self.session(*endpoints, seconds=seconds) as session:
            asking = (session.score(index, text) for index, text in enumerate(texts))
            return list(await asyncio.gather(*asking, return_exceptions=True))

    def calls(self, result: str) -> float:
        return self.metric("upstream_calls_total", role="reward", result=result)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(reward_http, "_FIRST_WAIT_SECONDS", {CallResult.OVERLOADED: 0.01, CallResult.LATE: 0.02})
    rig = Rig(patience_seconds=2.0, most_together=64)
    async with nothing_left(rig.upstream.close):
        yield rig


@pytest.fixture
def reward() -> FakeReward:
    return FakeReward(TARGET.reward, max_tokens=30)


async def test_those_that_end_in_one_turn_go_in_one_call(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.together(url) == SCORES
        assert await rig.together(url) == SCORES  # on the same connection
    assert [(one.candidates, one.stream) for one in reward.requests] == [(TEXTS, True)] * 2
    assert rig.calls("ok") == rig.metric("upstream_seconds_count", role="reward") == 2


async def test_one_that_ends_alone_is_sent_at_once_and_alone(rig: Rig, reward: FakeReward) -> None:
    reward.gate = asyncio.Event()
    async with served(reward.app) as url, rig.session(url) as session:
        scoring = []
        for index, text in enumerate(TEXTS[:3]):  # a call that is under way holds up nobody
            scoring.append(asyncio.create_task(session.score(index, text)))
            await until(lambda index=index: len(reward.requests) == index + 1)
        reward.gate.set()
        assert await asyncio.gather(*scoring) == SCORES[:3]
    assert [(one.candidates, one.stream) for one in reward.requests] == [([text], False) for text in TEXTS[:3]]


async def test_a_call_has_so_many_and_no_more(reward: FakeReward) -> None:
    rig = Rig(most_together=2)
    async with served(reward.app) as url:
        assert await rig.together(url) == SCORES
    assert sorted(len(one.candidates) for one in reward.requests) == [1, 2, 2]
    await rig.upstream.close()


async def test_each_score_is_there_when_it_is_ready_and_the_deadline_takes_none(rig: Rig, reward: FakeReward) -> None:
    reward.score = lambda text: 1.0
    reward.delay_seconds = 0.15
    async with served(reward.app) as url:
        got = await rig.together(url, texts=TEXTS * 6, seconds=3.0)
    scored = [one for one in got if one == 1.0]
    assert 1 <= len(scored) < len(got) and got[: len(scored)] == scored
    assert all(isinstance(one, DeadlineExceeded) for one in got[len(scored) :])
    assert len({id(one) for one in got[len(scored) :]}) == len(got) - len(scored)  # an error of its own for each


async def test_one_that_is_refused_takes_nobody_along(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        *got, refused = await rig.together(url, texts=[*TEXTS, TOO_LONG])
    assert got == SCORES
    assert isinstance(refused, InvalidRequest) and refused.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert refused.param == "candidates.0"
    assert (rig.calls("refused"), rig.calls("ok")) == (2, 5) and rig.metric(
        "upstream_retries_total", role="reward"
    ) == 0


async def test_one_that_the_service_fails_on_takes_nobody_along(rig: Rig, reward: FakeReward) -> None:
    reward.failing_candidates = [TEXTS[2]]
    async with served(reward.app) as url:
        got = await rig.together(url)
    assert [one for one in got if isinstance(one, float)] == SCORES[:2] + SCORES[3:]
    assert isinstance(got[2], Unavailable) and got[2].code is ErrorCode.REWARD_UNAVAILABLE


async def test_a_stream_that_breaks_keeps_what_it_gave(rig: Rig, reward: FakeReward) -> None:
    reward.break_after = 2
    async with served(reward.app) as url:
        assert await rig.together(url) == SCORES
    assert [one.candidates for one in reward.requests] == [TEXTS, TEXTS[2:], TEXTS[4:]]  # once more; then one by one
    assert (rig.calls("broken"), rig.calls("ok")) == (2, 1)


async def test_a_stream_that_falls_silent_is_left_for_another_service(rig: Rig, reward: FakeReward) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(stream(scored(0, SCORES[0]), length=9999))
        await until_closed(reader)

    server = RawServer(script)
    async with server.serving() as silent, served(reward.app) as url:
        rig.upstream.replicas._turn = 1  # the silent one is first
        assert await rig.together(silent, url) == SCORES
        await until(lambda: server.open == 0)
    assert [one.candidates for one in reward.requests] == [TEXTS[1:]]
    assert (rig.calls("timeout"), rig.calls("ok"), rig.metric("upstream_retries_total", role="reward")) == (1, 1, 1)


async def test_another_service_is_asked_for_all_with_one_retry(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        for _ in range(2):
            assert await rig.together(unused_url(), url) == SCORES
    assert rig.calls("ok") == 2 and rig.metric("upstream_retries_total", role="reward") == rig.calls("unreachable") <= 2


async def test_an_overloaded_service_is_waited_for_with_all_of_them(rig: Rig, reward: FakeReward) -> None:
    reward.failure = Unavailable("full", code=ErrorCode.REWARD_OVERLOADED)
    async with served(reward.app) as url:
        asking = asyncio.create_task(rig.together(url))
        await until(lambda: len(reward.requests) >= 3)
        reward.failure = None
        assert await asking == SCORES
    assert {len(one.candidates) for one in reward.requests} == {5}


async def test_the_last_one_to_leave_takes_the_call_along(rig: Rig, reward: FakeReward) -> None:
    reward.gate = asyncio.Event()
    async with served(reward.app) as url, rig.session(url) as session:
        scoring = [asyncio.create_task(session.score(i, text)) for i, text in enumerate(TEXTS)]
        await until(lambda: len(reward.requests) == 1)
        for task in scoring[1:]:
            task.cancel()
        await settled()
        assert reward.cancelled == 0 and rig.calls("cancelled") == 0
        scoring[0].cancel()
        await until(lambda: reward.cancelled == 1)
        assert (rig.calls("cancelled"), rig.upstream.replicas._load[url]) == (1, 0)


async def test_one_that_stays_gets_its_score(rig: Rig, reward: FakeReward) -> None:
    reward.gate = asyncio.Event()
    async with served(reward.app) as url, rig.session(url) as session:
        scoring = [asyncio.create_task(session.score(i, text)) for i, text in enumerate(TEXTS)]
        await until(lambda: len(reward.requests) == 1)
        scoring[0].cancel()
        await settled()
        reward.gate.set()
        assert await asyncio.gather(*scoring[1:]) == SCORES[1:]


@pytest.mark.parametrize("sent", [False, True])
async def test_leaving_the_session_gives_up_what_is_not_scored(rig: Rig, reward: FakeReward, sent: bool) -> None:
    reward.gate = asyncio.Event()
    async with served(reward.app) as url:
        async with rig.session(url) as session:
            scoring = [asyncio.create_task(session.score(i, text)) for i, text in enumerate(TEXTS)]
            await (until(lambda: len(reward.requests) == 1) if sent else asyncio.sleep(0))
        done, _ = await asyncio.wait(scoring, timeout=5)
        assert len(done) == len(TEXTS) and all(task.cancelled() for task in done)
        await until(lambda: reward.cancelled == sent)


async def test_a_bug_reaches_all_who_wait(rig: Rig, reward: FakeReward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.upstream, "stream", None)
    async with served(reward.app) as url:
        assert [type(one) for one in await rig.together(url)] == [TypeError] * 5


# ---------------------------------------------------------------------------------------------------- what is no answer


def stream(*events: str, model: str | None = TARGET.reward, kind: str = "text/event-stream", length: int = 0) -> bytes:
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    head = ["HTTP/1.1 200 OK", "connection: close", f"content-type: {kind}", f"content-length: {length or len(body)}"]
    head += [f"x-acemath-model: {model}"] if model else []
    return "\r\n".join([*head, "", ""]).encode() + body


def scored(index: int, score: object) -> str:
    return json.dumps({"index": index, "score": score, "tokens": 3})


DONE = json.dumps({"model": TARGET.reward, "usage": {}, "timings": {}})
ALL = [scored(0, 1.5), scored(1, 2.5)]
ERROR = json.dumps({"error": {"message": "m", "type": "server_error", "param": None, "code": "internal_error"}})
NO_ANSWER = {
    "another version": (stream(*ALL, DONE, model="other@s1-000000000009"), "mismatch"),
    "no version": (stream(*ALL, DONE, model=None), "mismatch"),
    "no event stream": (stream(*ALL, DONE, kind="text/html"), "broken"),
    "nonsense": (stream("<html>"), "broken"),
    "nan": (stream('{"index": 0, "score": NaN, "tokens": 1}'), "broken"),
    "infinity": (stream('{"index": 0, "score": 1e999, "tokens": 1}'), "broken"),
    "a text": (stream(scored(0, "good")), "broken"),
    "nobody's": (stream(scored(2, 1.5)), "broken"),
    "below the first": (stream(scored(-1, 1.5)), "broken"),
    "an end before the scores": (stream(DONE), "broken"),
    "no end, no scores": (stream(), "broken"),
    "an error": (stream(ERROR), "broken"),
    "an endless event": (stream("x" * 70_000), "broken"),
    "no UTF-8": (stream("abc").replace(b"abc", b"\xff\xfe\xfd"), "broken"),
}


def says(answer: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return script


@pytest.mark.parametrize("kind", NO_ANSWER)
async def test_what_is_no_answer_is_never_a_score(rig: Rig, kind: str) -> None:
    answer, result = NO_ANSWER[kind]
    async with RawServer(says(answer)).serving() as url:
        got = await rig.together(url, texts=TEXTS[:2])
        await rig.upstream.close()
    assert [type(one) for one in got] == [Unavailable] * 2
    assert rig.calls("ok") == 0 and rig.calls(result) >= 1
    assert rig.metric("version_mismatch_total", role="reward") == (result == "mismatch")


async def test_a_score_that_comes_twice_leaves_the_first(rig: Rig) -> None:
    async with RawServer(says(stream(scored(0, 1.5), scored(0, 9.5), scored(1, 2.5), DONE))).serving() as url:
        first, second = await rig.together(url, texts=TEXTS[:2])
        await rig.upstream.close()
    assert first == 1.5 and isinstance(second, Unavailable) and rig.calls("broken") >= 1


# -------------------------------------------------------------------------------------------------------------- the law

FATES = {"fine": "it is {}", "too long": "{} " + TOO_LONG, "fails": "{} fails"}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(FATES)), min_size=1, max_size=9), st.integers(1, 9))
def test_together_is_as_alone(fates: list[str], most: int) -> None:
    texts = [FATES[fate].format(number) for number, fate in enumerate(fates)]

    async def outcomes(most_together: int) -> list[object]:
        reward = FakeReward(TARGET.reward, max_tokens=30)
        reward.failing_candidates = [text for text in texts if text.endswith("fails")]
        rig = Rig(most_together=most_together)
        async with served(reward.app) as url:
            got = await rig.together(url, texts=texts)
            await rig.upstream.close()
        return [one if isinstance(one, float) else (type(one), getattr(one, "code", None)) for one in got]

    assert asyncio.run(outcomes(most)) == asyncio.run(outcomes(1))
