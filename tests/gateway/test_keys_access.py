"""`requires(scope)`: 401 without a key, 403 that names the scope, and what is open on a loopback without keys."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Depends, FastAPI, Request

from acemath_core.errors import Unavailable
from acemath_gateway.keys.access import ANYBODY, FILE_CALLER, KeyScope, requires
from acemath_web.auth import BearerMiddleware, Caller
from acemath_web.errors import install_error_handlers

KNOWN = {"solver": Caller("k1", frozenset({"solve"})), "root": Caller("k2", frozenset({"admin"})), "file": FILE_CALLER}


class Book:
    """Three keys, and one that cannot be looked up."""

    def __init__(self, *, required: bool) -> None:
        self.required = required

    async def find(self, key: str) -> Caller | None:
        if key == "away":
            raise Unavailable("keys cannot be looked up", retry_after=2.0)
        return KNOWN.get(key)


def _client(*, required: bool) -> httpx.AsyncClient:
    app = FastAPI()
    install_error_handlers(app)
    for scope in KeyScope:
        app.add_api_route(f"/{scope}", _who, dependencies=[Depends(requires(scope))])
    app.add_api_route("/caller", _caller(requires(KeyScope.SOLVE)))
    app.add_middleware(BearerMiddleware, callers=Book(required=required))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


async def _who(request: Request) -> str:
    return "in"


def _caller(dependency):
    async def caller(who: Caller = Depends(dependency)) -> str:
        return who.id

    caller.__annotations__["who"] = Caller
    return caller


@pytest.mark.parametrize(
    ("key", "solve", "jobs", "admin"),
    [
        ("solver", 200, 403, 403),
        ("root", 403, 403, 200),
        ("file", 200, 200, 403),
        ("nobody's", 401, 401, 401),
        (None, 401, 401, 401),
        ("away", 503, 503, 503),
    ],
)
async def test_a_key_opens_its_scopes_and_no_others(key, solve, jobs, admin):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with _client(required=True) as http:
        found = [(await http.get(f"/{scope}", headers=headers)).status_code for scope in ("solve", "jobs", "admin")]
    assert found == [solve, jobs, admin]


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), ("nobody's", 401), ("away", 503), ("solver", 403), ("root", 200)]
)
async def test_where_no_key_is_required_admin_asks_for_one_all_the_same(key, status):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with _client(required=False) as http:
        assert (await http.get("/admin", headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("key", "caller"), [(None, ANYBODY.id), ("nobody's", ANYBODY.id), ("away", ANYBODY.id), ("solver", "k1")]
)
async def test_where_no_key_is_required_a_known_one_counts_and_any_other_is_nobodys(key, caller):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with _client(required=False) as http:
        assert (await http.get("/caller", headers=headers)).json() == caller


async def test_the_refusal_names_the_scope_that_is_needed():
    async with _client(required=True) as http:
        error = (await http.get("/jobs", headers={"authorization": "Bearer solver"})).json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_scope", "permission_error")
    assert "'jobs'" in error["message"]
