"""Reads a JSON body strictly: what one JSON parser would read otherwise than another is refused, not guessed at.

Refused with a 400: another content type or charset, a compressed body, invalid UTF-8, duplicate names, NaN and
infinities, deep nesting, lone surrogates and null characters in strings, numbers that no field could hold, anything
after the value, every field that the schema does not have, and more values or longer names than any request can need.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request

from acemath_core.errors import ClientGone, ErrorCode, InvalidRequest
from acemath_web.errors import from_validation

Model = TypeVar("Model", bound=BaseModel)
Fields = dict[str, object]

JSON_KIND = "application/json"
_BODY_SECONDS = 15.0
_MAX_DEPTH = 16  # the deepest body that we know is messages → turn → parts → part → text
_MAX_VALUES = 10_000  # a chat of 256 turns, each in ten pieces
_MAX_COMMAS = 100_000  # with those inside texts, which are a few ten thousand characters; counting them costs nothing
_MAX_NAME_CHARS = 128
_MAX_EXACT = 2**53  # beyond it a float no longer says which integer was meant
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s\";]*)")
_UTF_8 = frozenset({"utf-8", "utf8"})


class _DuplicateName(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands: under `name` in what stands at `parent`."""

    parent: _Place | None
    name: str | int
    depth: int

    def path(self) -> str:
        """Written out from the root, e.g. `messages.0.content`; empty for the root."""
        names, place = [], self
        while place.parent is not None:
            names.append(_printable(str(place.name)))
            place = place.parent
        return ".".join(reversed(names))[:_MAX_NAME_CHARS]


_ROOT = _Place(None, "", 0)


async def read_fields(
    request: Request, known: Collection[str] | None = None, elsewhere: Mapping[str, str] | None = None
) -> Fields:
    """The body's JSON object.

    Args:
        request: whose body to read.
        known: the fields that the route has; None lets every name pass.
        elsewhere: where a field belongs that somebody may put here, to be told.

    Raises:
        InvalidRequest: the body does not come in time, is not one JSON object, or holds what is refused everywhere or
            a field not `known`.
        TooLarge: the body is over the service's limit.
        ClientGone: the caller left before the body was here.
    """
    _, raw = await read_raw(request, (JSON_KIND,))
    return fields_in(raw, known, elsewhere)


async def read_raw(request: Request, kinds: Collection[str]) -> tuple[str, bytes]:
    """The body's content type, one of `kinds`, and its bytes.

    Raises:
        InvalidRequest: it is of another kind, or does not come in time.
        TooLarge: it is over the service's limit.
        ClientGone: the caller left before it was here.
    """
    kind = _checked_kind(request, kinds)
    return kind, await _whole(request)


def fields_in(raw: bytes, known: Collection[str] | None = None, elsewhere: Mapping[str, str] | None = None) -> Fields:
    """The JSON object in `raw`; as `read_fields` of one that is here already."""
    fields = _parse(raw)
    if not isinstance(fields, dict):
        raise InvalidRequest('the body must be a JSON object such as {"problem": "…"}', param="body")
    if known is not None:
        _check_known(fields, known, elsewhere or {})
    _check_values(fields)
    return fields


def validated(model: type[Model], fields: Fields) -> Model:
    """The fields as `model`, in its strict JSON reading: "8" is no number, and 1 is no boolean.

    Raises:
        InvalidRequest: a field is unknown, missing or out of range; `param` names it.
    """
    try:
        return model.model_validate_json(to_json(fields), strict=True)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from error


def _checked_kind(request: Request, kinds: Collection[str]) -> str:
    """The content type; refuses what says of itself that it is something else than plain JSON in UTF-8."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind not in kinds:
        named = " or ".join(kinds)
        raise InvalidRequest(f"the content-type must be {named}; send the body as UTF-8 JSON", param="content-type")
    charset = _CHARSET.search(f";{parameters}")
    if charset is not None and charset[1] not in _UTF_8:
        raise InvalidRequest(f"charset {_printable(charset[1])!r} is not read; send UTF-8", param="content-type")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise InvalidRequest(
            f"content-encoding {_printable(coding)!r} is not read; send the body as it is", param="content-encoding"
        )
    return kind


async def _whole(request: Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise InvalidRequest(f"the body was not here after {_BODY_SECONDS:g} seconds", param="body") from None
    except ClientDisconnect as error:
        raise ClientGone("the caller left while sending its request") from error


def _parse(raw: bytes) -> object:
    if raw.count(b",") > _MAX_COMMAS:
        raise _too_many()
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_float=_number)
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


def _number(written: str) -> int | float:
    """A number with a point or an exponent; 8.0 is the integer 8, as JSON Schema has it (validation, 6.1.1)."""
    value = float(written)
    return int(value) if value.is_integer() and abs(value) <= _MAX_EXACT else value


def _without_duplicates(pairs: list[tuple[str, object]]) -> Fields:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _DuplicateName(_printable(twice))
    return fields


def _check_values(fields: Fields) -> None:
    """Refuse texts that are none, and more or longer than any request can need.

    A place in the body is kept as links to what it stands in, and is written out only when it is at fault: a name of
    the caller's is never copied for each of the values under it.
    """
    seen, stack = 0, [(_ROOT, cast("object", fields))]
    while stack:
        place, value = stack.pop()
        if isinstance(value, str):
            _check_text(value, place)
            continue
        for name, inner in _inside(value):
            seen += 1
            if seen > _MAX_VALUES:
                raise _too_many()
            stack.append((_below(place, name), inner))


def _inside(value: object) -> Iterable[tuple[str | int, object]]:
    """The names, or positions, and values that a value holds; none for a value that holds no others."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _below(place: _Place, name: str | int) -> _Place:
    """The place of what stands under `name` at `place`; raises `InvalidRequest` for a bad name, or when too deep."""
    if isinstance(name, str):
        _check_name(name, place)
    if place.depth >= _MAX_DEPTH:
        raise _too_deep()
    return _Place(place, name, place.depth + 1)


def _check_name(name: str, place: _Place) -> None:
    _check_text(name, place)
    if len(name) > _MAX_NAME_CHARS:
        param = place.path() or "body"
        raise InvalidRequest(
            f"{param}: a name of {len(name)} characters, at most {_MAX_NAME_CHARS} are read", param=param
        )


def _check_text(text: str, place: _Place) -> None:
    if "\0" in text:
        param = place.path() or "body"
        raise InvalidRequest(f"{param}: holds a null character; remove it", param=param)
    if not _encodable(text):
        param = place.path() or "body"
        raise InvalidRequest(f"{param}: holds half of a surrogate pair; send valid Unicode", param=param)


def _check_known(fields: Fields, known: Collection[str], elsewhere: Mapping[str, str]) -> None:
    """Refuse a field that the route does not have, before anything under it is looked at."""
    for name in fields:
        _check_name(name, _ROOT)
        if name not in known:
            remedy = f"send it as {elsewhere[name]}" if name in elsewhere else "remove it"
            raise InvalidRequest(
                f"unknown or unsupported field {name!r}; {remedy}", param=name, code=ErrorCode.UNSUPPORTED_PARAMETER
            )


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()[:_MAX_NAME_CHARS]


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"the body holds more than {_MAX_VALUES} values; send fewer", param="body")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested deeper than {_MAX_DEPTH} levels", param="body")
