"""A body of `POST /v1/jobs` to lines: every one of them is checked before any is accepted."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from dataclasses import dataclass

from acemath_core.errors import InvalidRequest, TooLarge
from acemath_core.wire import SolveRequest
from acemath_gateway.jobqueue.store import NewJob
from acemath_gateway.routes.body import fields_in, validated
from acemath_gateway.service import cost
from acemath_gateway.solve_wire import Limits, batch_job_of

_LINES_AT_A_TIME = 10  # between two of these others have their turn


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads the bodies of jobs.

    Attributes:
        limits: what is allowed beyond the schema.
        max_lines: of one job.
        max_sequences: candidates that can be made at once; a line that asks for more could never run.
    """

    limits: Limits
    max_lines: int
    max_sequences: int

    async def problem(self, raw: bytes) -> list[bytes]:
        """The one line of a body that is a problem.

        Raises:
            InvalidRequest: a field is unknown, missing or out of range; `param` names it.
        """
        return [self._checked(raw)]

    async def file(self, raw: bytes) -> list[bytes]:
        """The lines of a body that is a JSON Lines file; a line feed at its end is none of them.

        Raises:
            InvalidRequest: the file is empty, or a line is not as it should be; `param` names it, as in `3.n`.
            TooLarge: it has too many lines.
        """
        found = raw.removesuffix(b"\n").split(b"\n") if raw.strip() else []
        if not found:
            raise InvalidRequest("the file is empty; write one JSON object with a problem into each line", param="body")
        if len(found) > self.max_lines:
            raise TooLarge(f"the file has {len(found)} lines, at most {self.max_lines} are taken; send several files")
        lines = []
        for number, line in enumerate(found, 1):
            if number % _LINES_AT_A_TIME == 0:
                await asyncio.sleep(0)
            lines.append(self._numbered(number, line))
        return lines

    def _numbered(self, number: int, raw: bytes) -> bytes:
        try:
            if not raw.strip():
                raise InvalidRequest("is empty; remove it")
            return self._checked(raw)
        except InvalidRequest as error:
            param = f"{number}.{error.param}" if error.param else str(number)
            raise InvalidRequest(
                f"line {number}: {error.message}; no line was accepted", param=param, code=error.code
            ) from error

    def _checked(self, raw: bytes) -> bytes:
        request = validated(SolveRequest, fields_in(raw, SolveRequest.model_fields))
        job, _ = batch_job_of(request, "", self.limits)
        if cost(job) > self.max_sequences:
            raise InvalidRequest(f"n: at most {self.max_sequences} candidates are made at once here", param="n")
        return request.model_dump_json(exclude_unset=True).encode()


def new_job(owner: str, lines: list[bytes], *, key: str | None, webhook_url: str | None) -> NewJob:
    """The job of these lines.

    Args:
        owner: id of the caller's key.
        lines: checked.
        key: the caller's `Idempotency-Key`; the same one of the same caller names the same job.
        webhook_url: whom to tell of its end.
    """
    digest = hashlib.sha256(f"{webhook_url or ''}\n".encode())
    for line in lines:
        digest.update(line + b"\n")
    name = uuid.uuid4().hex if key is None else hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()[:32]
    return NewJob(f"job_{name}", owner, digest.hexdigest(), lines, webhook_url)
