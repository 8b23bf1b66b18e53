"""The service answers what its `/openapi.json` says, and takes what that says it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from documents.cases import check_all, validator
from pydantic import SecretStr
from reward.models import ArithmeticModel
from reward.publishing import promote, publish_reward
from reward.serving import serve, wait_until_ready

from acemath_registry import Registry
from acemath_reward.app import create_app
from acemath_reward.settings import RewardSettings

KEY = "k" * 40
TURNS = [{"role": "user", "content": "3 + 4"}]
TAKEN: dict[str, list[dict[str, Any]]] = {
    "/v1/score": [
        {"problem": "3 + 4", "candidates": ["7"], "messages": None},
        {"messages": TURNS, "candidates": ["7"]},
    ],
    "/classify": [{"input": ["7", [5, 6]]}, {"input": [5, 6]}, {"messages": TURNS, "add_special_tokens": False}],
    "/score": [{"text_1": "3 + 4", "text_2": ["7", "8"]}, {"queries": ["3 + 4"], "items": "7", "documents": None}],
    "/rerank": [{"query": "3 + 4", "documents": ["7", "8"], "top_n": 1.0}],
    "/get_reward": [{"query": []}, {"query": "3 + 4 = 7", "labels": [None]}],
}
REFUSED: dict[str, list[dict[str, Any]]] = {
    "/v1/score": [{"candidates": ["7"]}, {"problem": "3 + 4", "messages": TURNS, "candidates": ["7"]}],
    "/classify": [
        {},
        {"input": []},
        {"input": [[]]},
        {"input": "7", "messages": TURNS},
        {"messages": TURNS, "add_special_tokens": True},
        {"input": "7", "add_special_tokens": "yes"},
        {"input": "7", "use_activation": 1},
    ],
    "/score": [{"text_1": "3 + 4"}, {"text_1": "3", "documents": "7"}, {"text_1": [], "text_2": "7"}],
    "/rerank": [
        {"query": "3 + 4", "documents": []},
        {"query": "3 + 4", "documents": "7", "top_n": True},
        {"query": "3 + 4", "documents": "7", "top_n": "1"},
    ],
    "/get_reward": [{"query": 5}, {"query": None}],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("document")
    registry = Registry(directory / "registry")
    promote(registry, publish_reward(registry, llama), directory)
    settings = RewardSettings(registry_root=registry.root, cache_dir=directory / "cache", poll_seconds=0.05)
    with serve(create_app(settings, lambda _: ArithmeticModel(), SecretStr(KEY))) as at:
        wait_until_ready(at)
        yield at


def client(url: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False, verify=False)


async def test_every_answer_is_one_that_the_document_has(url: str) -> None:
    async with client(url) as http:
        assert await check_all(http, (await http.get("/openapi.json")).json()) > 40


@pytest.mark.parametrize("path", TAKEN)
async def test_what_no_field_says_alone_is_in_the_schema(url: str, path: str) -> None:
    async with client(url) as http:
        document = (await http.get("/openapi.json")).json()
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema: jsonschema.Draft202012Validator = validator(document, body)
        for fields in TAKEN[path]:
            assert (await http.post(path, json=fields)).status_code == 200, fields
            schema.validate(fields)
        for fields in REFUSED[path]:
            assert (await http.post(path, json=fields)).status_code == 400, fields
            assert not schema.is_valid(fields), fields


async def test_a_stream_is_in_the_document(url: str) -> None:
    async with client(url) as http:
        document = (await http.get("/openapi.json")).json()
        answer = await http.post("/v1/score", json={"problem": "3 + 4", "candidates": ["7"], "stream": True})
    content = document["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    named = content["text/event-stream"]["schema"]["properties"]["event"]["enum"]
    assert [line.removeprefix("event: ") for line in answer.text.split("\n") if line.startswith("event")] == named[:2]
