"""Reads a JSON body strictly: what one JSON parser would read otherwise than another is refused, not guessed at.

Refused with a 400: another content type, invalid UTF-8, duplicate names, NaN and infinities, deep nesting, lone
surrogates and null characters in strings, numbers that no field could hold, anything after the value, and every field
that the schema does not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from acemath_core.errors import ClientGone, InvalidRequest
from acemath_web.errors import from_validation

Model = TypeVar("Model", bound=BaseModel)
Fields = dict[str, object]

_MAX_DEPTH = 16  # the deepest body that we know is messages → turn → parts → part → text


class _DuplicateName(ValueError):
    pass


async def read_fields(request: Request) -> Fields:
    """The body's JSON object.

    Raises:
        InvalidRequest: the body is not one JSON object, or holds what is refused everywhere.
        TooLarge: the body is over the service's limit.
        ClientGone: the caller left before the body was here.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(
            "the content-type must be application/json; send the body as UTF-8 JSON", param="content-type"
        )
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise ClientGone("the caller left while sending its request") from error
    fields = _parse(raw)
    if not isinstance(fields, dict):
        raise InvalidRequest('the body must be a JSON object such as {"problem": "…"}', param="body")
    _check_values(fields)
    return fields


def validated(model: type[Model], fields: Fields) -> Model:
    """The fields as `model`, in its strict JSON reading: "8" is no number, and 1 is no boolean.

    Raises:
        InvalidRequest: a field is unknown, missing or out of range; `param` names it.
    """
    try:
        return model.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from error


def _parse(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 at byte {error.start}; send UTF-8", param="body") from error
    except _DuplicateName as error:
        name = str(error)
        raise InvalidRequest(f"the name {name!r} stands twice in one object; send it once", param=name) from error
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error.msg} at character {error.pos}", param="body"
        ) from error
    except ValueError as error:  # an integer of thousands of digits, which Python does not even read
        raise InvalidRequest("the body holds a number with too many digits", param="body") from error


def _without_duplicates(pairs: list[tuple[str, object]]) -> Fields:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _DuplicateName(_printable(twice))
    return fields


def _check_values(fields: Fields) -> None:
    for path, value in _leaves(fields):
        param = path or "body"
        if not isinstance(value, str):
            continue
        if "\0" in value:
            raise InvalidRequest(f"{param}: holds a null character; remove it", param=param)
        if not _encodable(value):
            raise InvalidRequest(f"{param}: holds half of a surrogate pair; send valid Unicode", param=param)


def _leaves(root: Fields) -> Iterator[tuple[str, object]]:
    """Every name and every value that holds no others, with its path; no recursion, since the depth is the caller's."""
    stack: list[tuple[str, object, int]] = [("", root, 0)]
    while stack:
        path, value, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, dict):
            yield from ((_printable(path), name) for name in value)
            stack.extend((_joined(path, str(name)), inner, depth + 1) for name, inner in value.items())
        elif isinstance(value, list):
            stack.extend((_joined(path, str(place)), inner, depth + 1) for place, inner in enumerate(value))
        else:
            yield _printable(path), value


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()[:100]


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested deeper than {_MAX_DEPTH} levels", param="body")
