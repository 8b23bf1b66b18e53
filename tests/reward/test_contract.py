"""What `POST /v1/score` and `GET /v1/slots` do: one suite, run on the real service and on its double.

The real one has a tiny checkpoint, the real engine and a real registry; both are asked over a real socket.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from reward.live_client import Live
from reward.publishing import promote, publish_reward
from reward.serving import serve, wait_until_ready
from starlette.types import ASGIApp

from acemath_core.wire import ScoreItem, ScoreResponse, Slot, SlotState
from acemath_registry import Registry
from acemath_reward.app import create_app
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.settings import RewardSettings
from doubles.fake_reward import FakeReward

KEY = "contract-key"
MAX_TOKENS = 320
PROBLEM = "Tom has 3 apples and buys 4 more. How many?"
CANDIDATES = ["3 + 4 = 7. \\boxed{7}", "3 * 4 = 12. \\boxed{12}", "\\boxed{7}"]


@pytest.fixture(params=["double", "real"], scope="module")
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    app = FakeReward(max_tokens=MAX_TOKENS, key=KEY).app
    if request.param == "real":
        app = real_app(request.getfixturevalue("llama"), tmp_path_factory.mktemp("real"))
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(app) as url, httpx.Client(base_url=url, headers=headers, timeout=60) as asking:
        wait_until_ready(url)
        yield asking


def real_app(checkpoint: Path, directory: Path) -> ASGIApp:
    registry = Registry(directory / "registry")
    promote(registry, publish_reward(registry, checkpoint), directory)
    settings = RewardSettings(registry_root=registry.root, cache_dir=directory / "cache", poll_seconds=0.05)
    loader = partial(load_engine, placement=place("cpu", "auto", threads=1))
    return create_app(settings, loader, SecretStr(KEY))


def score(client: httpx.Client, **body: Any) -> ScoreResponse:
    answer = client.post("/v1/score", json={"problem": PROBLEM, "candidates": CANDIDATES} | body)
    assert answer.status_code == 200, answer.text
    return ScoreResponse.model_validate(answer.json())


def refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"] and error["type"]
    assert answer.headers["x-request-id"]


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_scores_come_in_order_with_the_version_that_made_them(client: httpx.Client) -> None:
    answer = score(client)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert all(item.tokens > 0 for item in answer.data)
    assert answer.model in [slot["version"] for slot in client.get("/v1/slots").json()]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.candidate_tokens
    assert answer.timings.total_seconds >= answer.timings.compute_seconds >= 0


def test_a_score_does_not_depend_on_its_mates(client: httpx.Client) -> None:
    together = [item.score for item in score(client).data]
    alone = [score(client, candidates=[candidate]).data[0].score for candidate in CANDIDATES]
    turned = [item.score for item in score(client, candidates=CANDIDATES[::-1]).data]
    assert together == alone == turned[::-1]


def test_duplicates_have_one_score(client: httpx.Client) -> None:
    data = score(client, candidates=[CANDIDATES[0], CANDIDATES[1], CANDIDATES[0]]).data
    assert data[0].score == data[2].score != data[1].score
    assert [item.index for item in data] == [0, 1, 2]


def test_scores_are_float32(client: httpx.Client) -> None:
    import struct

    for item in score(client).data:
        assert struct.unpack("f", struct.pack("f", item.score))[0] == item.score


def test_messages_may_stand_for_the_problem(client: httpx.Client) -> None:
    turns = [{"role": "user", "content": PROBLEM}]
    by_messages = client.post("/v1/score", json={"messages": turns, "candidates": CANDIDATES})
    assert by_messages.status_code == 200, by_messages.text
    assert [item["score"] for item in by_messages.json()["data"]] == [item.score for item in score(client).data]


def test_token_ids_are_scored(client: httpx.Client) -> None:
    data = score(client, candidates=[{"token_ids": [40, 50, 60]}, "text", {"token_ids": [40, 50, 60]}]).data
    assert data[0].score == data[2].score


def test_the_model_may_be_named_and_must_be_served(client: httpx.Client) -> None:
    version = score(client).model
    assert score(client, model=version).model == version
    other = client.post("/v1/score", json={"problem": PROBLEM, "candidates": ["x"], "model": "other@s0-000000000000"})
    refused(other, 409, "model_not_served", "model")
    assert version in other.json()["error"]["message"]


def test_streaming_gives_each_score_and_then_the_rest(client: httpx.Client) -> None:
    plain = score(client)
    answer = client.post("/v1/score", json={"problem": PROBLEM, "candidates": CANDIDATES, "stream": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-acemath-model"] == plain.model
    got = events(answer.text)
    assert [name for name, _ in got] == ["score", "score", "score", "done"]
    items = sorted((ScoreItem.model_validate(data) for name, data in got if name == "score"), key=lambda i: i.index)
    assert items == plain.data
    assert got[-1][1]["model"] == plain.model
    assert got[-1][1]["usage"] == plain.usage.model_dump()
    assert set(got[-1][1]["timings"]) == set(type(plain.timings).model_fields)


def test_a_peek_gives_the_score_of_what_came_before_it_and_changes_nothing(client: httpx.Client) -> None:
    whole, begun = score(client), score(client, candidates=[text[:9] for text in CANDIDATES])
    turns = [{"role": "user", "content": PROBLEM}]
    with Live(str(client.base_url).rstrip("/"), opened=False, key=KEY) as live:
        live.send(type="open", messages=turns, model=whole.model, deadline=60.0)
        for index, text in enumerate(CANDIDATES):
            live.write(index, [text[:5], text[5:9]], end=False)
            live.send(type="peek", index=index)
        partials = {frame["index"]: frame for frame in (live.receive() for _ in CANDIDATES)}
        for index, text in enumerate(CANDIDATES):
            live.write(index, [text[9:]])
        scores = live.scores(len(CANDIDATES))
    assert [partials[item.index] for item in begun.data] == [{"type": "partial", **dict(item)} for item in begun.data]
    assert [scores[item.index] for item in whole.data] == [{"type": "score", **dict(item)} for item in whole.data]


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_names_the_candidate_and_is_never_cut(client: httpx.Client, stream: bool) -> None:
    body = {"problem": PROBLEM, "candidates": ["short", "7 " * 400], "stream": stream}
    refused(client.post("/v1/score", json=body), 400, "context_length_exceeded", "candidates.1")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"problem": PROBLEM}, "invalid_request", "candidates"),
        ({"problem": PROBLEM, "candidates": []}, "invalid_request", "candidates"),
        ({"candidates": ["x"]}, "invalid_request", None),
        (
            {"problem": PROBLEM, "messages": [{"role": "user", "content": "x"}], "candidates": ["x"]},
            "invalid_request",
            None,
        ),
        ({"problem": PROBLEM, "candidates": ["x"], "truncate": True}, "unsupported_parameter", "truncate"),
    ],
)
def test_a_wrong_body_is_refused(client: httpx.Client, body: Any, code: str, param: str | None) -> None:
    refused(client.post("/v1/score", json=body), 400, code, param)


def test_text_that_is_no_json_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/score", content=b"{", headers={"content-type": "application/json"})
    refused(answer, 400, "invalid_request")


def test_a_deadline_that_has_passed_is_a_504(client: httpx.Client) -> None:
    body = {"problem": PROBLEM, "candidates": CANDIDATES}
    answer = client.post("/v1/score", json=body, headers={"x-acemath-deadline-ms": "0"})
    refused(answer, 504, "deadline_exceeded")


def test_a_key_is_asked_for_except_by_probes(client: httpx.Client) -> None:
    wrong = {"authorization": "Bearer nobody"}
    assert client.get("/v1/slots", headers=wrong).status_code == 401
    assert client.post("/v1/score", json={}, headers=wrong).status_code == 401
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        assert client.get(path, headers=wrong).status_code == 200, path


def test_slots_say_what_is_active(client: httpx.Client) -> None:
    slots = [Slot.model_validate(slot) for slot in client.get("/v1/slots").json()]
    assert [slot.state for slot in slots] == [SlotState.ACTIVE]
    assert slots[0].version == score(client).model


def test_a_request_id_is_echoed(client: httpx.Client) -> None:
    assert client.get("/v1/slots", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
