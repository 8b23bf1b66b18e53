"""Every hostile request gets a clear refusal that names the field, or a right answer; no 500, no slow neighbour."""

import asyncio
import json
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from acemath_core.errors import InvalidRequest
from acemath_core.wire import SolveRequest
from acemath_gateway.routes.body import read_fields, validated
from acemath_gateway.solve_wire import Limits, job_of
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client, served
from doubles.hostile import ANSWERED, REFUSED, Hostile
from doubles.servers import client_of


def send(http: httpx.AsyncClient, hostile: Hostile):
    return http.post(hostile.path, content=hostile.body, headers=hostile.headers)


def test_there_are_more_than_the_twenty_asked_for():
    assert len(REFUSED) + len(ANSWERED) >= 20
    assert len({hostile.name for hostile in REFUSED + ANSWERED}) == len(REFUSED + ANSWERED)


async def test_hostile_requests_are_refused_by_name():
    gateway = GatewayOnDoubles()
    async with gateway_client(gateway) as http:
        for hostile in REFUSED:
            reply = await send(http, hostile)
            assert reply.status_code == hostile.status, (hostile.name, reply.text)
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, hostile.name
            assert error["message"] and len(error["message"]) < 500, hostile.name
            if hostile.param is not None:
                assert error["param"] == hostile.param, (hostile.name, error)
    assert not gateway.policy.calls


async def test_odd_texts_are_problems_like_others():
    gateway = GatewayOnDoubles()
    async with gateway_client(gateway) as http:
        for hostile in ANSWERED:
            reply = await send(http, hostile)
            assert reply.status_code == 200, (hostile.name, reply.text)
    prompts = [bytes(ids).decode() for ids, _ in gateway.policy.calls]
    assert "alert(1)" in "".join(prompts)


async def test_a_neighbour_is_not_slowed():
    async with gateway_client(GatewayOnDoubles()) as http:
        await http.post("/v1/solve", json={"problem": PROBLEM})

        async def hammer() -> None:
            await asyncio.gather(*(send(http, hostile) for hostile in REFUSED))

        hostile_work = asyncio.create_task(hammer())
        started = time.monotonic()
        assert (await http.get("/livez")).status_code == 200
        assert (await http.post("/v1/solve", json={"problem": PROBLEM})).status_code == 200
        assert time.monotonic() - started < 15
        await hostile_work


async def test_a_body_of_unannounced_length_is_refused_at_the_limit():
    async def pieces():
        for _ in range(200):
            yield b'{"problem": "' + b"7" * 65_536

    async with gateway_client(GatewayOnDoubles()) as http:
        reply = await http.post("/v1/solve", content=pieces(), headers={"content-type": "application/json"})
        assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"


async def test_bytes_that_are_not_http_do_no_harm():
    async with served(GatewayOnDoubles().app()) as url:
        host, port = url.removeprefix("http://").split(":")
        for noise in (
            b"\0" * 1000,
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/solve HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(noise)
            answer = await asyncio.wait_for(reader.read(2000), 30)
            assert b" 500 " not in answer.split(b"\r\n")[0]
            writer.close()
            await writer.wait_closed()
        async with client_of(url) as http:
            assert (await http.get("/livez")).status_code == 200


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["n", "temperature", "top_p", "max_tokens", "seed", "selection", "candidates", "adaptive", "on_scorer_failure"]
)


@settings(max_examples=150, deadline=None)
@given(fields=st.dictionaries(FIELDS, ANYTHING, max_size=4), problem=st.text(max_size=40) | ANYTHING)
def test_no_value_in_any_field_is_our_fault(fields, problem):
    body = json.dumps({"problem": problem} | fields).encode()
    try:
        request = validated(SolveRequest, asyncio.run(read_fields(_request(body))))
        job_of(request, "id", Limits(max_problem_chars=100, default_deadline_seconds=1, max_deadline_seconds=2))
    except InvalidRequest as error:
        assert error.param


def _request(body: bytes) -> Request:
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


@pytest.mark.parametrize("path", ["/v1/models/gpt-4", "/v1/nothing", "/admin"])
async def test_what_is_not_there_is_a_404_in_the_one_shape(path):
    async with gateway_client(GatewayOnDoubles()) as http:
        reply = await http.get(path)
    assert reply.status_code == 404 and reply.json()["error"]["type"] == "not_found_error"


async def test_the_wrong_method_is_a_405_in_the_one_shape():
    async with gateway_client(GatewayOnDoubles()) as http:
        reply = await http.get("/v1/solve")
    assert reply.status_code == 405 and reply.json()["error"]["code"] == "method_not_allowed"
    assert reply.headers["allow"] == "POST"
