"""`/openapi.json` says what a client must know and no framework does: the deadline header and the live frames."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from reward.models import ArithmeticModel

from acemath_core.deadline import DEADLINE_HEADER
from acemath_reward.app import create_app
from acemath_reward.document import WEBSOCKETS
from acemath_reward.live.frames import read_frames
from acemath_reward.settings import RewardSettings

BODIES = {
    "/v1/score": {"problem": "x", "candidates": ["y"]},
    "/classify": {"input": "x"},
    "/score": {"text_1": "x", "text_2": "y"},
    "/get_reward": {"query": ["x"]},
} | {path: {"query": "x", "documents": ["y"]} for path in ("/rerank", "/v1/rerank", "/v2/rerank")}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    settings = RewardSettings(registry_root=tmp_path / "registry", cache_dir=tmp_path / "cache")
    return create_app(settings, lambda _: ArithmeticModel())


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    assert app.openapi() is app.openapi(), "made once"
    return dict(json.loads(json.dumps(app.openapi())))


async def test_every_post_honours_the_deadline_header_and_says_so(app: FastAPI, document: dict[str, Any]) -> None:
    posts = {path: methods["post"] for path, methods in document["paths"].items() if "post" in methods}
    assert posts.keys() == BODIES.keys()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for path, operation in posts.items():
            (parameter,) = operation["parameters"]
            assert (parameter["name"], parameter["in"], parameter["required"]) == (DEADLINE_HEADER, "header", False)
            refused = await client.post(path, json=BODIES[path], headers={DEADLINE_HEADER: "soon"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, DEADLINE_HEADER), path


def test_the_frames_of_the_websocket_are_there(document: dict[str, Any]) -> None:
    assert "WS /v1/score/live" in document["info"]["description"]
    live = document[WEBSOCKETS]["/v1/score/live"]
    assert "peek" in live["description"] and "1013" in live["description"]
    schemas = document["components"]["schemas"]
    kinds = {}
    for side, messages in live["messages"].items():
        names = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', dumped(messages))
        frames = [schemas[name] for name in names]
        kinds[side] = {frame["properties"]["type"]["const"] for frame in frames}
        assert all(frame["description"] and frame["additionalProperties"] is False for frame in frames)
    client, server = {"open", "piece", "peek", "drop", "end", "done"}, {"score", "partial", "error", "done"}
    assert kinds == {"client": client, "server": server}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    found = set(re.findall(r"#/components/schemas/([A-Za-z_]+)", dumped(document)))
    assert found and found <= schemas.keys()


def test_the_frames_of_the_documentation_are_frames() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reward-api.md").read_text("utf-8")
    lines = re.findall(r"^→ ([\[{].*?[\]}])(?:  .*)?$", page, re.MULTILINE)
    frames = [frame for line in lines for frame in read_frames(line)]
    kinds = [type(frame).__name__ for frame in frames]
    assert kinds == ["Open", "Piece", "Piece", "Piece", "Peek", "Drop", "End", "Done"]


def dumped(part: Any) -> str:
    return json.dumps(part)
