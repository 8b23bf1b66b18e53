"""The gateway over HTTP: one streamed solve, and plain requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from acemath_core.wire import Solution, SolveRequest, Wire

_CONNECT_SECONDS = 5.0
_PLAIN_SECONDS = 60.0  # the longest change of a channel takes 40
_GRACE_SECONDS = 15.0  # beyond the request's own deadline: the gateway's answer to a deadline must still arrive


class AskError(Exception):
    """The gateway could not be reached or refused; the message is what a person should read."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: `candidate.finished`, `candidate.scored`, `solution` or `error`, and its JSON body."""

    name: str
    data: dict[str, Any]


def solve_stream(url: str, key: SecretStr | None, request: SolveRequest) -> Iterator[Event]:
    """Ask with `stream=true`; yields each event as it arrives.

    Raises:
        AskError: no connection, an error answer, an `error` event, or a stream that ends without a solution.
    """
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    timeout = httpx.Timeout(request.deadline_seconds + _GRACE_SECONDS, connect=_CONNECT_SECONDS)
    body = request.model_dump(mode="json", exclude_none=True) | {"stream": True}
    try:
        with (
            httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False) as client,
            client.stream("POST", "/v1/solve", json=body) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
                raise refusal(response)
            yield from _until_solution(response)
    except httpx.HTTPError as error:
        raise unreachable(url, error) from error


def ask(url: str, key: SecretStr | None, method: str, path: str, body: Wire | None = None) -> Any:
    """The JSON answer to one request.

    Raises:
        AskError: no connection, or an error answer.
    """
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    timeout = httpx.Timeout(_PLAIN_SECONDS, connect=_CONNECT_SECONDS)
    patch = method == "PATCH"  # in which null says something
    content = None if body is None else body.model_dump(mode="json", exclude_none=not patch, exclude_unset=patch)
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False) as client:
            response = client.request(method, path, json=content)
    except httpx.HTTPError as error:
        raise unreachable(url, error) from error
    if not response.is_success:
        raise refusal(response)
    return response.json()


def refusal(response: httpx.Response) -> AskError:
    """What a person should read of an error answer that was read whole."""
    return AskError(_message(response) + _hint(response.status_code))


def unreachable(url: str, error: Exception) -> AskError:
    """What a person should read when there is no connection, or it broke."""
    return AskError(f"{url}: {str(error) or type(error).__name__}; is the stack running? (make run)")


def solution_of(event: Event) -> Solution:
    """The body of a `solution` event."""
    return Solution.model_validate(event.data)


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events out of lines (WHATWG HTML, 9.2.6); comments are skipped, several data lines are joined."""
    name, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield Event(name, json.loads("\n".join(data)))
            name, data = "message", []
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def _until_solution(response: httpx.Response) -> Iterator[Event]:
    for event in parse_events(response.iter_lines()):
        if event.name == "error":
            raise AskError(str(event.data.get("error", {}).get("message", event.data)))
        yield event
        if event.name == "solution":
            return
    raise AskError("the gateway closed the stream before its answer")


def _hint(status: int) -> str:
    return " (acemath takes your key from ACEMATH_CLI__API_KEY)" if status == httpx.codes.UNAUTHORIZED else ""


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{response.status_code} {error['code'] or error['type']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} from {response.url}"
