"""Reading a body costs what the body weighs: no copies, no long walks, no unbounded time."""

import json
import time
import tracemalloc

import pytest
from starlette.requests import Request

from acemath_core.errors import ErrorCode, InvalidRequest
from acemath_core.wire import SolveRequest
from acemath_gateway.routes.body import read_fields


def request_with(body: bytes) -> Request:
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


async def refusal(body: object, known=None) -> tuple[InvalidRequest, int, float]:
    """The refusal of a body, and the bytes and seconds that it took."""
    request = request_with(body if isinstance(body, bytes) else json.dumps(body).encode())
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(InvalidRequest) as refused:
            await read_fields(request, known)
        seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return refused.value, peak, seconds


async def test_a_long_name_is_not_copied_for_every_value_under_it():
    error, peak, _ = await refusal({"problem": "2 + 2", "k" * 50_000: [1] * 5000})
    assert peak < 1_000_000
    assert error.param is not None and len(error.param) <= 128 and len(error.message) < 500


async def test_a_known_field_with_long_names_below_it_is_refused_by_its_own_name():
    error, peak, _ = await refusal({"acemath": {"k" * 50_000: [1] * 5000}}, {"acemath"})
    assert error.param == "acemath" and peak < 1_000_000


async def test_a_flat_list_of_millions_is_refused_unread():
    body = b'{"problem": [' + b"1," * 2_000_000 + b"1]}"
    error, peak, seconds = await refusal(body)
    assert error.param == "body" and "values" in error.message
    assert peak < 2 * len(body) and seconds < 0.5


async def test_values_are_counted_over_the_whole_body():
    error, _, _ = await refusal({"messages": [{"a": [1, 2]}] * 4000})
    assert "values" in error.message and error.code is ErrorCode.INVALID_REQUEST


async def test_an_unknown_field_is_named_before_what_is_under_it_is_read():
    error, _, _ = await refusal({"problem": "2 + 2", "extra": [0] * 50_000}, SolveRequest.model_fields)
    assert error.param == "extra" and error.code is ErrorCode.UNSUPPORTED_PARAMETER


async def test_the_place_of_a_bad_text_is_written_out():
    error, _, _ = await refusal({"messages": [{"role": "user", "content": [{"text": "ok"}, {"text": "a\0"}]}]})
    assert error.param == "messages.0.content.1.text"
    error, _, _ = await refusal({"messages": [{"role": {"x\0": 1}}]})
    assert error.param == "messages.0.role"


async def test_an_ordinary_long_chat_is_read():
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "1,2,3," * 5}] * 10}] * 250}
    assert await read_fields(request_with(json.dumps(body).encode())) == body


def request_saying(**headers: str) -> Request:
    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    given = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    return Request({"type": "http", "headers": raw}, receive)


@pytest.mark.parametrize(
    ("header", "value", "says"),
    [
        ("content_encoding", "gzip", "gzip"),
        ("content_encoding", "identity, br", "br"),
        ("content_type", "application/json; charset=utf-16", "utf-16"),
        ("content_type", 'application/json;v=1 ; CHARSET = "Latin-1"', "latin-1"),
        ("content_type", "text/plain; charset=utf-8", "application/json"),
    ],
)
async def test_another_coding_of_the_body_is_refused_by_name(header, value, says):
    with pytest.raises(InvalidRequest, match=says) as refused:
        await read_fields(request_saying(**{header: value}))
    assert refused.value.param == header.replace("_", "-")


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", 'Application/JSON;charset="utf8"'])
async def test_utf_8_by_any_of_its_names_is_read(kind):
    assert await read_fields(request_saying(content_type=kind, content_encoding="Identity")) == {}


async def test_a_whole_number_is_an_integer_however_it_is_written_and_no_other_is():
    fields = await read_fields(request_with(b'{"a": 8.0, "b": 1e3, "c": -0.0, "d": 8.5, "e": 1e300}'))
    assert [repr(value) for value in fields.values()] == ["8", "1000", "0", "8.5", "1e+300"]
