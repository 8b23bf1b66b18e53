"""Jobs of a gateway over HTTP: hand over, follow across broken connections, fetch results page by page, end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from acemath_cli.client import AskError, refusal, unreachable
from acemath_core.jobs import Job, JobList, JobProgress, LineResult

_CONNECT_SECONDS, _READ_SECONDS = 5.0, 60.0
_SILENT_SECONDS = 30.0  # of a stream that says something every ten
_PAGE = 1000
_BROKEN_AT_MOST = 10  # in a row, of one stream
_PAUSE_SECONDS = 1.0
FILE_KIND = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of one gateway. Every method raises `AskError` when it cannot be reached or refuses.

    Attributes:
        url: base URL.
        key: the caller's key.
    """

    url: str
    key: SecretStr | None

    def submit(self, body: bytes, kind: str, webhook: str | None, idempotency_key: str | None) -> Job:
        """Hand over a problem (`application/json`) or a file of them (`FILE_KIND`)."""
        headers = {"content-type": kind}
        headers |= {"x-acemath-webhook": webhook} if webhook else {}
        headers |= {"idempotency-key": idempotency_key} if idempotency_key else {}
        return Job.model_validate(self._ask("POST", "/v1/jobs", content=body, headers=headers))

    def mine(self, limit: int) -> JobList:
        """The caller's jobs, the youngest first."""
        return JobList.model_validate(self._ask("GET", "/v1/jobs", params={"limit": limit}))

    def cancel(self, job_id: str) -> Job:
        """End a job."""
        return Job.model_validate(self._ask("DELETE", f"/v1/jobs/{_segment(job_id)}"))

    def follow(self, job_id: str) -> Iterator[JobProgress | Job]:
        """Its progress, then the job when it has ended; goes on where a broken stream stopped."""
        last, broken = "0", 0
        while True:
            try:
                for number, name, data in self._events(job_id, last):
                    last, broken = number, 0
                    if name == "end":
                        yield Job.model_validate(data)
                        return
                    yield JobProgress.model_validate(data)
            except (httpx.HTTPError, _Broken) as error:
                if broken == _BROKEN_AT_MOST:
                    raise unreachable(self.url, error) from error
            broken += 1
            if broken > _BROKEN_AT_MOST:
                raise AskError(f"{self.url}: the stream of events broke {broken} times; the job goes on by itself")
            threading.Event().wait(_PAUSE_SECONDS)

    def results(self, job_id: str, offset: int) -> Iterator[bytes]:
        """The rows after the first `offset`, as far as there are."""
        while True:
            rows = 0
            for row in self._rows(job_id, offset):
                rows += 1
                yield row
            if rows < _PAGE:
                return
            offset += rows

    def _rows(self, job_id: str, offset: int) -> Iterator[bytes]:
        path, query = f"/v1/jobs/{_segment(job_id)}/results", {"offset": offset, "limit": _PAGE}
        with self._errors(), self._client(_READ_SECONDS) as client, client.stream("GET", path, params=query) as answer:
            _check(answer)
            for line in answer.iter_lines():
                fields = json.loads(line)
                if "line" not in fields:
                    raise AskError(str(fields["error"]["message"]))
                yield line.encode()

    def _events(self, job_id: str, last: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        path, headers = f"/v1/jobs/{_segment(job_id)}/events", {"last-event-id": last}
        with self._client(_SILENT_SECONDS) as client, client.stream("GET", path, headers=headers) as answer:
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                raise _Broken("jobs cannot be had right now")
            _check(answer)
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(":")
                if line:
                    fields[name] = value.removeprefix(" ")
                elif "data" in fields:
                    yield self._event(fields)
                    fields = {}

    @staticmethod
    def _event(fields: dict[str, str]) -> tuple[str, str, dict[str, Any]]:
        if fields.get("event") == "error":
            raise _Broken(json.loads(fields["data"])["error"]["message"])
        return fields["id"], fields["event"], json.loads(fields["data"])

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        with self._errors(), self._client(_READ_SECONDS) as client:
            answer = client.request(method, path, **more)
            _check(answer)
            return answer.json()

    def _client(self, read_seconds: float) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key else {}
        timeout = httpx.Timeout(read_seconds, connect=_CONNECT_SECONDS)
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise unreachable(self.url, error) from error


class _Broken(Exception):
    """A stream that may be asked for again."""


def row_of(row: bytes) -> LineResult:
    """A row of the results."""
    return LineResult.model_validate_json(row)


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        answer.read()
        raise refusal(answer)


def _segment(job_id: str) -> str:
    if not job_id.removeprefix("job_").isalnum():
        raise AskError(f"{job_id!r} is not the id of a job; one looks like job_ and 32 hex digits (acemath jobs list)")
    return job_id
