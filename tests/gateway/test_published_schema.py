"""`/openapi.json` and the routes agree: a body that one takes the other takes, a body that it refuses is refused."""

import json

import httpx
import jsonschema
import pytest

from acemath_gateway.chat_wire import NEUTRAL, NEUTRAL_IN_MESSAGE
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client
from doubles.hostile import ANSWERED

SOLVE, CHAT = "/v1/solve", "/v1/chat/completions"
USER = {"role": "user", "content": PROBLEM}
PARTS = {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "3 * 8?"}]}
SOLVE_TAKEN = [
    {},
    {"n": 3, "seed": 0, "temperature": 0, "top_p": 1, "max_tokens": 7},
    {"selection": "majority", "on_scorer_failure": "majority", "candidates": "full", "adaptive": True},
    {"deadline_seconds": 599.5, "stream": True},
    {"n": 3.0, "seed": 1e3},
    {"early_reject": True, "n": 2},
    {"early_reject": False, "n": 1, "selection": "majority"},
    {"early_reject": True, "n": 4, "adaptive": True, "temperature": 0.1, "max_tokens": 33},
]
SOLVE_REFUSED = [
    {"problem": ""},
    {"problem": " "},
    {"problem": "3 * 8\0?"},
    {"problem": "x" * 40_000},
    {"n": 65},
    {"deadline_seconds": 601},
    {"extra": 1},
    {"early_reject": True, "selection": "majority"},
    {"early_reject": True, "n": 1},
    {"early_reject": True, "temperature": 0},
    {"early_reject": True, "max_tokens": 32},
]
CHAT_TAKEN = [
    {"messages": [PARTS]},
    {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": "4"}, USER]},
    {"stop": "END", "seed": 5, "user": "u-1", "max_completion_tokens": 7},
    {"stop": ["a", "b"], "temperature": None, "n": 2, "best_of": 3},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"acemath": {"selection": "weighted_vote", "candidates": "scores", "deadline_seconds": 60}},
    {"acemath": {"early_reject": True}, "n": 2},
    *({name: value} for name, values in NEUTRAL.items() for value in (None, *values)),
    *({"messages": [USER | {name: None}]} for name in NEUTRAL_IN_MESSAGE),
]
CHAT_REFUSED = [
    {"model": "gpt-4o"},
    {"messages": []},
    {"messages": [{"role": "user", "content": []}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [USER | {"name": "bob"}]},
    {"stop": ["a", "b", "c", "d", "e"]},
    {"stop": ""},
    {"stop": "a\0"},
    {"messages": [{"role": "user", "content": "3 * 8\0?"}]},
    {"store": True},
    {"logprobs": 0},
    {"acemath": {"deadline_seconds": 601}},
    {"acemath": {"early_reject": True, "selection": "majority"}},
    {"top_k": 5},
]
BODIES = {
    SOLVE: ({"problem": PROBLEM}, SOLVE_TAKEN, SOLVE_REFUSED),
    CHAT: ({"model": "acemath", "messages": [USER]}, CHAT_TAKEN, CHAT_REFUSED),
}


async def _published(http: httpx.AsyncClient) -> dict:
    return (await http.get("/openapi.json")).json()


def _schema(document: dict, path: str) -> jsonschema.Draft202012Validator:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_taken_fits_the_schema_and_what_is_refused_does_not(path):
    least, taken, refused = BODIES[path]
    async with gateway_client(GatewayOnDoubles()) as http:
        schema = _schema(await _published(http), path)
        for fields in taken:
            reply = await http.post(path, json=least | fields)
            assert reply.status_code == 200, (fields, reply.text)
            schema.validate(least | fields)
        for fields in refused:
            assert (await http.post(path, json=least | fields)).status_code in (400, 404), fields
            assert not schema.is_valid(least | fields), fields


async def test_rules_by_which_nobody_is_stopped_are_in_the_schema_of_the_gateway_that_has_them():
    settings = {"early_reject_keep": 0.9, "early_reject_after_tokens": 1024}
    bodies = [{}, {"n": 16}, {"n": 16, "max_tokens": 1100}, {"n": 9, "max_tokens": 1100}, {"max_tokens": 1100}]
    bodies.append({"n": 16, "max_tokens": 1100, "adaptive": True})
    async with gateway_client(GatewayOnDoubles(settings=settings)) as http:
        schema = _schema(await _published(http), SOLVE)
        taken = []
        for fields in bodies:
            body = {"problem": PROBLEM, "early_reject": True} | fields
            taken.append((await http.post(SOLVE, json=body)).status_code == 200)
            assert schema.is_valid(body) is taken[-1], fields
    assert taken == [False, False, True, False, False, False]


async def test_odd_texts_fit_the_schema_too():
    async with gateway_client(GatewayOnDoubles()) as http:
        document = await _published(http)
    for hostile in ANSWERED:
        _schema(document, hostile.path).validate(httpx.Response(200, content=hostile.body).json())


async def test_the_document_says_what_this_server_does():
    async with gateway_client(
        GatewayOnDoubles(settings={"max_problem_chars": 100, "max_deadline_seconds": 200})
    ) as http:
        document = await _published(http)
    fields = _schema(document, SOLVE).schema["properties"]
    assert fields["problem"]["maxLength"] == 100 and fields["deadline_seconds"]["maximum"] == 200
    assert "422" not in str(document) and "HTTPValidationError" not in str(document)
    assert [one["name"] for one in document["paths"][CHAT]["post"]["parameters"]] == [
        "Idempotency-Key",
        "Cache-Control",
    ]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["paths"]["/livez"]["get"]["security"] == [] and "security" in document


@pytest.mark.parametrize("keyed", [False, True])
async def test_where_there_are_keys_every_path_says_what_is_answered_without_one(tmp_path, keyed):
    keys = tmp_path / "keys"
    keys.write_text("k" * 20)
    keys.chmod(0o600)
    async with gateway_client(GatewayOnDoubles(settings={"api_keys_file": keys} if keyed else {})) as http:
        paths = (await _published(http))["paths"]
    said = {path: set(paths[path]["get"]["responses"]) for path in ("/v1/models", "/v1/releases", "/livez")}
    assert [{"401", "403"} <= said[path] for path in said] == [keyed, keyed, False]
    assert {"4XX", "5XX"} <= set(paths[SOLVE]["post"]["responses"])


async def test_every_event_of_a_stream_is_one_that_the_document_has():
    async with gateway_client(GatewayOnDoubles()) as http:
        document = await _published(http)
        stream = (await http.post(SOLVE, json={"problem": PROBLEM, "n": 2, "stream": True})).text
    content = document["paths"][SOLVE]["post"]["responses"]["200"]["content"]["text/event-stream"]
    kinds = {one["properties"]["event"]["const"]: one["properties"]["data"] for one in content["schema"]["oneOf"]}
    events = [event.split("\ndata: ") for event in stream.strip().split("\n\n")]
    assert len(events) == 5
    for name, data in events:
        jsonschema.validate(json.loads(data), kinds[name.removeprefix("event: ")]["contentSchema"])


async def test_no_parameter_can_be_null():
    async with gateway_client(GatewayOnDoubles()) as http:
        paths = (await _published(http))["paths"]
    operations = [operation for methods in paths.values() for operation in methods.values()]
    parameters = [one for operation in operations for one in operation.get("parameters", [])]
    assert {"Idempotency-Key", "last-event-id"} <= {one["name"] for one in parameters}
    assert not [one["name"] for one in parameters if {"type": "null"} in one["schema"].get("anyOf", [])]
    (event,) = [one for one in parameters if one["name"] == "last-event-id"]
    assert event["schema"]["pattern"] == "^[0-9]{1,9}$"
