from __future__ import annotations

import importlib.util
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from acemath_core.processes.vllm import SIDE
from acemath_policy.vllm_server import GUARD


def guard(path: str = GUARD) -> Any:
    """The class as vLLM loads it: by its import path, from its own folder."""
    module, _, name = path.rpartition(".")
    spec = importlib.util.spec_from_file_location(module, SIDE / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


async def _answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("vllm")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/metrics", 200),
        ("/v1/models", 200),
        ("/v1/completions", 200),
        ("/invocations", 404),
        ("/tokenize", 404),
        ("/v1/chat/completions", 404),
        ("/v1/completions/", 404),
        ("/inference/v1/generate", 404),
    ],
)
async def test_only_what_we_use_is_served(path: str, status: int) -> None:
    app = Starlette(routes=[Route("/{rest:path}", _answer, methods=["GET", "POST"])])
    transport = httpx.ASGITransport(app=guard()(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
        response = await client.post(path, content=b"x" * 10)
    assert response.status_code == status
    if status == 404:
        assert response.json()["error"]["code"] == 404


@pytest.mark.parametrize(
    ("path", "shown", "status"),
    [
        ("/classify", "Bearer the key", 200),
        ("/classify", "Bearer another", 401),
        ("/classify", None, 401),
        ("/health", None, 200),
        ("/pooling", "Bearer the key", 200),
        ("/pooling", None, 401),
        ("/score", "Bearer the key", 404),
        ("/v1/models", "Bearer the key", 404),
    ],
)
async def test_scores_are_given_to_those_with_the_key(
    monkeypatch: pytest.MonkeyPatch, path: str, shown: str | None, status: int
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "the key")
    app = Starlette(routes=[Route("/{rest:path}", _answer, methods=["GET", "POST"])])
    transport = httpx.ASGITransport(app=guard("acemath_vllm_guard.OnlyScores")(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
        response = await client.post(path, headers={"authorization": shown} if shown else {})
    assert response.status_code == status


async def test_no_websocket() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await guard()(None)({"type": "websocket", "path": "/v1/completions"}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
