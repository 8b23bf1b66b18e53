"""Whatever a shape does not implement is a 400 that names it; hostile bodies get a clear 4xx and harm nobody."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from reward.models import ArithmeticModel
from reward.publishing import promote, publish_reward
from reward.serving import serve, wait_for, wait_until_ready

from acemath_registry import Registry
from acemath_reward.app import create_app
from acemath_reward.settings import RewardSettings

CLASSIFY: dict[str, Any] = {"input": "<|im_start|>user\n3 + 4<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n"}
SCORE: dict[str, Any] = {"text_1": "3 + 4", "text_2": ["7", "8"]}
RERANK: dict[str, Any] = {"query": "3 + 4", "documents": ["7", "8"]}
REWARD: dict[str, Any] = {"query": ["3 + 4 = 7"]}
BODIES = {"/classify": CLASSIFY, "/score": SCORE, "/rerank": RERANK, "/get_reward": REWARD}


@pytest.fixture(scope="module")
def model() -> ArithmeticModel:
    return ArithmeticModel()


@pytest.fixture(scope="module")
def client(model: ArithmeticModel, tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("refusals")
    registry = Registry(directory / "registry")
    promote(registry, publish_reward(registry, llama), directory)
    settings = RewardSettings(
        registry_root=registry.root, cache_dir=directory / "cache", poll_seconds=0.05, max_queue_items=64
    )
    with (
        serve(create_app(settings, lambda _: model)) as url,
        httpx.Client(base_url=url, timeout=60, verify=False) as asking,
    ):
        wait_until_ready(url)
        yield asking
        model.hold.set()


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    body = answer.json()["error"]
    assert body["message"] and body["type"]
    return answer.status_code, body["code"], body["param"]


def send(client: httpx.Client, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    # json.dumps writes lone surrogates, which httpx itself would refuse to send
    sent = {"content-type": "application/json"} | (headers or {})
    return client.post(path, content=json.dumps(body), headers=sent)


@pytest.mark.parametrize("path", BODIES)
def test_the_plain_bodies_are_accepted(client: httpx.Client, path: str) -> None:
    assert send(client, path, BODIES[path]).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        *[
            (path, fields)
            for path in ("/classify", "/score", "/rerank")
            for fields in (
                {"truncate_prompt_tokens": 64},
                {"truncate_prompt_tokens": -1},
                {"truncation_side": "left"},
                {"padding": "max_length"},
                {"priority": 5},
                {"user": "me"},
                {"cache_salt": "salt"},
                {"mm_processor_kwargs": {}},
                {"normalize": True},
                {"stream": True},
            )
        ],
        ("/classify", {"chat_template": "{{ messages }}"}),
        ("/classify", {"chat_template_kwargs": {"x": 1}}),
        ("/classify", {"add_generation_prompt": True}),
        ("/classify", {"continue_final_message": True}),
        ("/classify", {"task": "token_classify"}),
        ("/score", {"max_tokens_per_query": 8}),
        ("/rerank", {"max_tokens_per_doc": 8}),
        ("/rerank", {"instruction": "judge"}),
        ("/score", {"chat_template_kwargs": {}}),
        ("/rerank", {"return_documents": False}),
        ("/get_reward", {"max_len": 2048}),
    ],
)
def test_a_field_that_is_not_implemented_is_named(client: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    (name,) = fields
    assert error(send(client, path, BODIES[path] | fields)) == (400, "unsupported_parameter", name)


@pytest.mark.parametrize("path", ["/classify", "/score", "/rerank"])
def test_a_field_may_have_the_value_that_changes_nothing(client: httpx.Client, path: str) -> None:
    neutral = {"truncate_prompt_tokens": None, "padding": "do_not_pad", "priority": 0, "user": None, "model": None}
    assert send(client, path, BODIES[path] | neutral).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/classify", {}, (400, "invalid_request", None)),
        ("/classify", CLASSIFY | {"messages": [{"role": "user", "content": "x"}]}, (400, "invalid_request", None)),
        ("/classify", {"input": []}, (400, "invalid_request", "input")),
        ("/classify", {"input": [[]]}, (400, "invalid_request", "input")),
        ("/classify", {"input": ""}, (400, "invalid_request", "input.0")),
        ("/classify", {"input": ["x", 5]}, (400, "invalid_request", "input")),
        ("/classify", {"input": [5, "x"]}, (400, "invalid_request", "input")),
        ("/classify", {"input": [5, True]}, (400, "invalid_request", "input")),
        ("/classify", {"input": [5, -1]}, (400, "invalid_request", "input")),
        ("/classify", {"input": [[5, 1.5]]}, (400, "invalid_request", "input")),
        ("/classify", {"input": {"a": 1}}, (400, "invalid_request", "input")),
        ("/classify", {"input": "\ud800"}, (400, "invalid_request", "input")),
        ("/classify", {"input": [5, 384]}, (400, "invalid_request", "input.0")),
        ("/classify", {"input": [[5], [10**30]]}, (400, "invalid_request", "input.1")),
        ("/classify", {"input": [[5], [5] * 400]}, (400, "context_length_exceeded", "input.1")),
        ("/classify", {"input": ["x", "7 " * 400]}, (400, "context_length_exceeded", "input.1")),
        ("/classify", {"input": "x" * 200_000}, (413, "request_too_large", "input.0")),
        ("/classify", {"input": ["x"] * 1025}, (400, "invalid_request", "input")),
        ("/classify", {"input": [[5, i] for i in range(65)]}, (413, "request_too_large", "input")),
        ("/classify", {"messages": [{"role": "tool", "content": "x"}]}, (400, "invalid_request", "messages.0.role")),
        ("/classify", {"messages": []}, (400, "invalid_request", "messages")),
        ("/classify", CLASSIFY | {"use_activation": "perhaps"}, (400, "invalid_request", "use_activation")),
        ("/classify", CLASSIFY | {"use_activation": True, "activation": False}, (400, "invalid_request", None)),
        ("/classify", CLASSIFY | {"request_id": "a\nb"}, (400, "invalid_request", "request_id")),
        ("/classify", CLASSIFY | {"model": "other"}, (409, "model_not_served", "model")),
        ("/score", {"text_1": "x"}, (400, "invalid_request", None)),
        ("/score", SCORE | {"documents": ["x"]}, (400, "invalid_request", None)),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, (400, "invalid_request", None)),
        ("/score", {"text_1": [], "text_2": ["c"]}, (400, "invalid_request", "text_1")),
        ("/score", {"text_1": "x", "text_2": ["c", 7]}, (400, "invalid_request", "text_2.1")),
        ("/score", {"text_1": "x", "text_2": [{"content": []}]}, (400, "invalid_request", "text_2.0")),
        ("/score", {"text_1": "x", "text_2": ["c", "7 " * 400]}, (400, "context_length_exceeded", "text_2.1")),
        ("/score", {"queries": "x" * 200_000, "items": "c"}, (413, "request_too_large", "queries.0")),
        ("/rerank", {"query": "x"}, (400, "invalid_request", "documents")),
        ("/rerank", {"query": ["x"], "documents": ["y"]}, (400, "invalid_request", "query")),
        ("/rerank", {"query": "x", "documents": []}, (400, "invalid_request", "documents")),
        ("/rerank", RERANK | {"top_n": -1}, (400, "invalid_request", "top_n")),
        ("/rerank", {"query": "x", "documents": ["\udfff"]}, (400, "invalid_request", "documents.0")),
        ("/rerank", {"query": "x", "documents": ["y", "7 " * 400]}, (400, "context_length_exceeded", "documents.1")),
        ("/rerank", {"query": "x", "documents": [str(i) for i in range(65)]}, (413, "request_too_large", "documents")),
        ("/get_reward", {}, (400, "invalid_request", "query")),
        ("/get_reward", {"query": [None]}, (400, "invalid_request", "query.0")),
        ("/get_reward", REWARD | {"prompts": []}, (400, "invalid_request", None)),
        ("/get_reward", REWARD | {"labels": [1, 2]}, (400, "invalid_request", None)),
        ("/get_reward", {"query": ["x", "7 " * 400]}, (400, "context_length_exceeded", "query.1")),
        ("/get_reward", {"query": ["x", "y" * 200_000]}, (413, "request_too_large", "query.1")),
    ],
)
def test_a_hostile_body_gets_a_clear_4xx(
    client: httpx.Client, path: str, body: Any, expected: tuple[int, str, str | None]
) -> None:
    assert error(send(client, path, body)) == expected
    assert send(client, path, BODIES[path]).status_code == 200


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_bytes_that_are_no_request_get_a_400(client: httpx.Client, path: str, content: bytes) -> None:
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert error(answer)[0] == 400


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic eA==", "Bearer", "Basic " + "A" * 9])
def test_a_broken_basic_header_is_no_accident(client: httpx.Client, header: str) -> None:
    """This service has no key, so everybody is admitted; what cannot be read must not fail it."""
    assert send(client, "/score", SCORE, {"authorization": header}).status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_a_deadline_holds_for_every_shape(client: httpx.Client, path: str) -> None:
    answer = send(client, path, BODIES[path], {"x-acemath-deadline-ms": "0"})
    assert error(answer) == (504, "deadline_exceeded", None)


@pytest.mark.parametrize("path", BODIES)
def test_a_client_that_goes_takes_its_work_along(client: httpx.Client, model: ArithmeticModel, path: str) -> None:
    while model.entered.acquire(blocking=False):
        pass
    model.hold.clear()
    connections = [raw_post(client, "/score", SCORE)]
    try:
        assert model.entered.acquire(timeout=60), "the engine stands still in the middle of a batch"
        connections.append(raw_post(client, path, BODIES[path]))
        wait_for(lambda: queued(client) > 0)
        connections.pop().close()
        wait_for(lambda: queued(client) == 0)
    finally:
        model.hold.set()
        for connection in connections:
            connection.close()
    assert send(client, path, BODIES[path]).status_code == 200


def queued(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("acemath_reward_queue_items ")).rpartition(" ")[2])


def raw_post(client: httpx.Client, path: str, body: dict[str, Any]) -> socket.socket:
    content = json.dumps(body).encode()
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=60)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection
