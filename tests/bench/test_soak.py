"""The soak's own arithmetic: pieces are the whole, and every broken promise is seen."""

from __future__ import annotations

import random

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.soak.calls import Call, Caller, Ended, Outcome, Way, pieces
from bench.soak.report import minutes_of, summary

POOL = [("What is 3 + 4?", ["7", "It is 8."])]


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8), st.integers(0, 2**31))
def test_the_pieces_of_each_candidate_are_its_text_and_then_its_end(texts: list[str], seed: int) -> None:
    frames = pieces(texts, random.Random(seed))
    for index, text in enumerate(texts):
        own = [frame for frame in frames if frame["index"] == index]
        assert [frame["type"] for frame in own] == ["piece"] * (len(own) - 1) + ["end"]
        assert "".join(frame.get("text", "") for frame in own) == text


def ended(outcome: Outcome = Outcome.ANSWERED, *, changed: int = 0, slack: float = 1.0, sent: float = 0.0) -> Ended:
    return Ended(outcome, Way.WHOLE, "", 0.1, slack, scores=2, changed=changed, sent=sent)


FLAT = [{"at": 10.0 * tick, "rss_0": 1e9} for tick in range(20)]


@pytest.mark.parametrize(
    ("broken", "memory"),
    [
        (ended(Outcome.LOST), FLAT),
        (ended(Outcome.LATE), FLAT),
        (ended(changed=1), FLAT),
        (ended(), [{"at": 10.0 * tick, "rss_0": 1e9 + 2e7 * tick} for tick in range(20)]),
    ],
)
def test_each_broken_promise_is_seen(broken: Ended, memory: list[dict[str, float]]) -> None:
    good = [ended() for _ in range(200)]
    assert summary(good, FLAT)["promises_kept"]
    assert not summary([*good, broken], memory)["promises_kept"]


def test_a_minute_counts_the_calls_sent_in_it() -> None:
    rows = minutes_of([ended(sent=5.0), ended(Outcome.REFUSED, sent=61.0), ended(sent=62.0)], FLAT)
    assert [(row["minute"], row.get("answered"), row.get("refused")) for row in rows] == [(0, 1, None), (1, 1, 1)]
    assert rows[0]["rss_0_mib"] == 953.7


def answering(status: int, body: object, headers: dict[str, str] | None = None) -> Caller:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body, headers=headers))
    client = httpx.AsyncClient(transport=transport)
    return Caller(client, ["http://reward"], None, POOL, {(0, 0): 1.5, (0, 1): -2.0})


CALL = Call("http://reward", Way.WHOLE, 0, (1, 0), deadline=5.0, leaves=None, cuts=0)


async def test_a_score_with_other_bits_is_counted() -> None:
    rows = [{"index": 0, "score": -2.0}, {"index": 1, "score": 1.5000001}]
    found = await answering(200, {"data": rows}).run(CALL)
    assert (found.outcome, found.scores, found.changed) == (Outcome.ANSWERED, 2, 1)


async def test_a_refusal_has_a_code_and_overload_says_when_to_come_again() -> None:
    body = {"error": {"code": "reward_overloaded"}}
    refused = await answering(503, body, {"retry-after": "1"}).run(CALL)
    assert (refused.outcome, refused.code) == (Outcome.REFUSED, "reward_overloaded")
    assert (await answering(503, body).run(CALL)).outcome is Outcome.LOST
