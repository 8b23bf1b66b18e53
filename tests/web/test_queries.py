"""What a route does not know in its query is refused by name; who only probes is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from acemath_web.auth import KeySet
from acemath_web.health import Readiness
from acemath_web.queries import StrictQueryRoute
from acemath_web.service import create_service


def _page(size: Annotated[int, Query(alias="page-size", ge=1)] = 10) -> int:
    return size


def _routes() -> APIRouter:
    router = APIRouter(route_class=StrictQueryRoute)

    @router.get("/rows")
    async def rows(size: Annotated[int, Depends(_page)], offset: int = 0) -> dict[str, int]:
        return {"offset": offset, "size": size}

    @router.post("/rows")
    async def add() -> str:
        return "added"

    return router


@asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def _client() -> httpx.AsyncClient:
    app = create_service(
        name="probe",
        routers=[_routes()],
        readiness=lambda: Readiness(True),
        registry=CollectorRegistry(),
        keys=KeySet([]),
        lifespan=_no_lifespan,
        max_body_bytes=1000,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://probe")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with _client() as http:
        yield http


@pytest.mark.parametrize("query", ["", "?", "?&", "?offset=3&page-size=5", "?page-size=5"])
async def test_what_the_route_and_its_dependencies_take_is_taken(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/rows{query}")).status_code == 200


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("ofset=3", "ofset", "unsupported_parameter"),
        ("offset=3&size=5", "size", "unsupported_parameter"),  # its name here is page-size
        ("stream", "stream", "unsupported_parameter"),
        ("=1", "", "unsupported_parameter"),
        ("offset=1&offset=2", "offset", "invalid_request"),
        ("a%00b=1", "a�b", "unsupported_parameter"),
    ],
)
async def test_what_it_does_not_take_is_a_400_that_names_it(
    client: httpx.AsyncClient, query: str, param: str, code: str
) -> None:
    answer = await client.get(f"/rows?{query}")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


async def test_the_refusal_says_what_there_is(client: httpx.AsyncClient) -> None:
    some = (await client.get("/rows?limit=1")).json()["error"]["message"]
    none = (await client.post("/rows?limit=1")).json()["error"]["message"]
    assert "offset, page-size" in some and "none" in none


async def test_another_method_is_the_first_thing_to_say(client: httpx.AsyncClient) -> None:
    assert (await client.delete("/rows?limit=1")).status_code == 405


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
async def test_probes_and_metrics_let_pass_what_others_take(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"{path}?name%5B%5D=up&exclude=etcd")).status_code == 200


@given(st.text(st.characters(codec="utf-8"), max_size=300))
async def test_whatever_is_asked_the_answer_is_an_answer(name: str) -> None:
    async with _client() as http:
        answer = await http.get("/rows", params={name: "1"})
    assert answer.status_code == (200 if name in ("offset", "page-size") else 400)
    assert len(answer.content) < 1500
