"""A few requests for each operation of an OpenAPI document, and what the document says of each and of its answer.

What is sent is made loosely, of the document's own fields and of values that are wrong somewhere; whether a body is one
that the operation takes is asked of the JSON schema, not of how it was made. `make interop` does this in earnest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema

Document = dict[str, Any]
Schema = dict[str, Any]
VALUES: tuple[Any, ...] = (None, "", "x", "3 * 8", 0, -1, 1, 8.0, 1.5, 10**9, True, False, [], ["x"], [0], {}, {"x": 1})
TEXTS = ("3 * 8?", "acemath", "a", "r-0123456789ab", "key-0123456789abcdef", f"job_{'0' * 32}", "0")
NO_OBJECTS = (None, [], "text", 5)
JSON = "application/json"


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        method: lower case.
        template: the path as the document has it.
        path: the path that is asked.
        fits: whether the document takes it; None where it has no body.
    """

    method: str
    template: str
    path: str
    body: Any = None
    fits: bool | None = None
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(self, http: httpx.AsyncClient) -> httpx.Response:
        """The answer; the body is read."""
        given = {"json": self.body} if self.fits is not None else {}
        return await http.request(self.method.upper(), self.path, headers=self.headers, **given)


def operations(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of all of them."""
    for template, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, template, operation


def requests(document: Document, method: str, template: str, few: int, seed: int) -> list[Request]:
    """At most `few` requests of an operation with a body, one that fits among them; one of an operation without."""
    operation = document["paths"][template][method]
    path = _path(document, template, operation)
    content = operation.get("requestBody", {}).get("content", {})
    if JSON not in content:
        return [Request(method, template, path)]
    schema = content[JSON]["schema"]
    accepts = validator(document, schema)
    least = sample(document, schema)
    assert accepts.is_valid(least), f"{method} {template}: {least!r} is no body of it"
    drawn = random.Random(f"{seed} {template}").sample(list(_variants(document, schema, least)), few - 1)
    return [Request(method, template, path, body, accepts.is_valid(body)) for body in (least, *drawn)]


def _variants(document: Document, schema: Schema, least: dict[str, Any]) -> Iterator[Any]:
    yield from NO_OBJECTS
    yield {**least, "no_such_field": 1}
    for name, one in _resolved(document, schema).get("properties", {}).items():
        for value in (*VALUES, *one.get("enum", ()), sample(document, one)):
            yield {**least, name: value}
        yield {other: value for other, value in least.items() if other != name}


def sample(document: Document, schema: Schema) -> Any:
    """A small value that fits, as far as this can tell."""
    schema = _resolved(document, schema)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("type") == "object" or "properties" in schema:
        branch = schema.get("oneOf", [{}])[0]
        names = {*schema.get("required", ()), *branch.get("required", ())}
        return {name: sample(document, schema["properties"][name]) for name in sorted(names)}
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if choice.get("type") != "null":
            return sample(document, choice)
    if schema.get("type") == "array":
        return [sample(document, schema.get("items", {}))] * max(1, schema.get("minItems", 0))
    if schema.get("type") == "string":
        accepts = validator(document, schema)
        return next(text for text in TEXTS if accepts.is_valid(text))
    return {"integer": max(1, schema.get("minimum", 1)), "number": 1, "boolean": False}.get(schema.get("type"))


def _path(document: Document, template: str, operation: dict[str, Any]) -> str:
    parameters = [one for one in operation.get("parameters", ()) if one["in"] == "path"]
    return template.format(**{one["name"]: sample(document, one["schema"]) for one in parameters})


def validator(document: Document, schema: Schema) -> jsonschema.Draft202012Validator:
    """What checks values against a schema of the document, references included."""
    return jsonschema.Draft202012Validator({**schema, "components": document.get("components", {})})


def _resolved(document: Document, schema: Schema) -> Schema:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def check_answer(document: Document, request: Request, answer: httpx.Response) -> None:
    """Raises `AssertionError` for an answer that the document does not have, or that does not go with the request."""
    said = f"{request.method} {request.path} {json.dumps(request.body)[:500]}: {answer.status_code} {answer.text[:500]}"
    responses = document["paths"][request.template][request.method]["responses"]
    status = str(answer.status_code)
    found = responses.get(status) or responses.get(f"{status[0]}XX")
    assert found is not None, f"an undocumented status: {said}"
    assert answer.status_code != 500 and (request.fits is not False or status[0] == "4"), said
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if "content" in found:
        assert kind in found["content"], f"an undocumented content type: {said}"
        if kind == JSON:
            validator(document, found["content"][kind].get("schema", {})).validate(answer.json())


async def check_all(http: httpx.AsyncClient, document: Document, few: int = 8, seed: int = 1) -> int:
    """Ask every operation, also by a method that it lacks and without a key; gives how many requests were made."""
    asked = 0
    for method, template, operation in operations(document):
        made = requests(document, method, template, few, seed)
        for request in made:
            check_answer(document, request, await request.ask(http))
        await _check_strangers(http, document, made[0], operation.get("security", document.get("security")))
        asked += len(made)
    for template in document["paths"]:
        await _check_method(http, document, template)
    return asked


async def _check_strangers(
    http: httpx.AsyncClient, document: Document, request: Request, security: list[dict[str, Any]]
) -> None:
    """Where a key is asked for, there is none without one, nor with a wrong one."""
    if not security or {} in security:
        return
    for key in ("", "Bearer nobody's"):
        stranger = Request(**{**vars(request), "headers": {"authorization": key}})
        answer = await stranger.ask(http)
        assert answer.status_code == 401, f"{request.method} {request.path} without a key: {answer.status_code}"
        check_answer(document, Request(**{**vars(stranger), "fits": None}), answer)


async def _check_method(http: httpx.AsyncClient, document: Document, template: str) -> None:
    """Another method is a 405 that names those that there are."""
    there = {method.upper() for method in document["paths"][template]}
    method = next(name for name in ("PATCH", "PUT") if name not in there)
    path = _path(document, template, next(iter(document["paths"][template].values())))
    answer = await http.request(method, path)
    assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) >= there, f"{method} {path}"
