"""Light clients: each asks without a pause, and how every single request ended is kept and judged."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.kills.calls import LOST_SECONDS
from bench.swaps.load import PROBLEMS, Release, foreign

DEADLINE_SECONDS = 60.0
PAUSE_SECONDS = 0.2
"""Between two requests of a client: they are there to see, not to load."""


class Outcome(enum.StrEnum):
    """How a request ended. Everything but `LOST` is accounted for."""

    ANSWERED = "answered"
    DECLARED = "declared error"  # a status with an error body and a code
    CUT = "cut"  # its connection broke, or there was none: only a dead gateway excuses that
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, ended.

    Attributes:
        sent: monotonic time.
        ended: monotonic time.
        code: of the error, or what was wrong.
        release: that answered.
        mixed: what in the answer is not of that release, if anything.
    """

    outcome: Outcome
    sent: float
    ended: float
    code: str = ""
    release: str = ""
    mixed: str = ""


@dataclass(slots=True)
class Clients:
    """Some of them, and what they saw.

    Attributes:
        client: of the gateway.
        releases: that there are, by id.
        n: candidates of a request.
        max_tokens: of a candidate.
        asked: what has ended, in that order.
    """

    client: httpx.AsyncClient
    releases: dict[str, Release]
    n: int
    max_tokens: int
    asked: list[Asked] = field(default_factory=list)
    _ending: bool = False

    @contextlib.asynccontextmanager
    async def asking(self, count: int) -> AsyncIterator[None]:
        """So many, until the block ends and every request of theirs has."""
        self._ending = False
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._run(number))
            try:
                yield
            finally:
                self._ending = True

    async def _run(self, number: int) -> None:
        while not self._ending:
            number += 1
            self.asked.append(await self._ask(number % len(PROBLEMS)))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _ask(self, problem: int) -> Asked:
        body = {
            "problem": PROBLEMS[problem], "n": self.n, "max_tokens": self.max_tokens, "candidates": "full",
            "deadline_seconds": DEADLINE_SECONDS,
        }  # fmt: skip
        sent = time.monotonic()
        try:
            answer = await self.client.post("/v1/solve", json=body, timeout=DEADLINE_SECONDS + LOST_SECONDS)
            return self._read(answer, problem, sent)
        except httpx.TimeoutException:
            return Asked(Outcome.LOST, sent, time.monotonic(), "no end")
        except httpx.TransportError as error:
            return Asked(Outcome.CUT, sent, time.monotonic(), type(error).__name__)

    def _read(self, answer: httpx.Response, problem: int, sent: float) -> Asked:
        now = time.monotonic()
        try:
            found = answer.json()
            if answer.status_code != 200:
                return Asked(Outcome.DECLARED, sent, now, f"{answer.status_code} {found['error']['code']}")
            wrong = foreign(found, self.releases, problem) or ""
            return Asked(Outcome.ANSWERED, sent, now, found["degraded_reason"] or "", found["release"], wrong)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            return Asked(Outcome.LOST, sent, now, f"status {answer.status_code}, {type(error).__name__} in its body")


def after(asked: Sequence[Asked], moment: float, release: str | None = None) -> float | None:
    """Seconds from a moment to the first answer of what was sent since, by a release if one is given."""
    ended = [
        one.ended
        for one in asked
        if one.outcome is Outcome.ANSWERED and one.sent >= moment and release in (None, one.release)
    ]
    return round(min(ended) - moment, 2) if ended else None


def recovered(asked: Sequence[Asked], moment: float) -> float | None:
    """Seconds from a moment until every request was answered again; 0 when none was not, None when it never was so.

    The end is the first answer to what was sent after the last request without one: a part may go on for a moment when
    its keeper is dead, and what is answered then is no recovery.
    """
    failed = [one.sent for one in asked if one.ended >= moment and one.outcome is not Outcome.ANSWERED]
    ended = [one.ended for one in asked if failed and one.outcome is Outcome.ANSWERED and one.sent > max(failed)]
    return 0.0 if not failed else round(min(ended) - moment, 2) if ended else None


def account(asked: Sequence[Asked], gateway_killed: float | None) -> dict[str, Any]:
    """Requests sent = answered + declared errors + cut + lost.

    A broken connection is excused only from the gateway's kill, if it was killed, to the first answer after it: what
    ended before or was sent later, and broke, is lost.
    """
    back = None if gateway_killed is None else after(asked, gateway_killed)
    until = float("inf") if gateway_killed is None or back is None else gateway_killed + back

    def outcome(one: Asked) -> Outcome:
        excused = gateway_killed is not None and one.ended >= gateway_killed and one.sent <= until
        return Outcome.LOST if one.outcome is Outcome.CUT and not excused else one.outcome

    counts = Counter(outcome(one) for one in asked)
    bad = [one for one in asked if outcome(one) is Outcome.LOST]
    return {
        "sent": len(asked),
        **{str(name): counts[name] for name in Outcome},
        "codes": dict(Counter(one.code for one in asked if one.outcome is Outcome.DECLARED)),
        "degraded": dict(Counter(one.code for one in asked if one.outcome is Outcome.ANSWERED and one.code)),
        "mixed": [one.mixed for one in asked if one.mixed],
        "lost_because": [one.code for one in bad],
    }
