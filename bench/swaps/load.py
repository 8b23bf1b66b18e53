"""Clients that ask one problem after the other, and check of every answer that one release made all of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

PROBLEMS = ("What is 7 + 5?", "What is 6 * 7?", "Tom has 3 apples and buys 4 more. How many has he?")


@dataclass(frozen=True, slots=True)
class Release:
    """What a release must answer.

    Attributes:
        id: of the release.
        policy: name@version.
        reward: name@version.
        letter: which its policy writes.
        scores: by its reward model, of that policy's text, for each of `PROBLEMS`; the same bits every time.
    """

    id: str
    policy: str
    reward: str
    letter: str
    scores: tuple[float, ...]


@dataclass(slots=True)
class Load:
    """All clients, and what they saw.

    Attributes:
        client: of the gateway.
        n: candidates of a request.
        max_tokens: of a candidate.
        releases: that there are, by id.
        answers: (when it was sent, seconds it took, release), monotonic.
        failures: what went wrong, with the time.
        first: when each release's first answer came.
    """

    client: httpx.AsyncClient
    n: int
    max_tokens: int
    releases: dict[str, Release] = field(default_factory=dict)
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    ending: bool = False

    async def run(self, number: int) -> None:
        """One client, until `ending`."""
        asked = number
        while not self.ending:
            asked += 1
            began = time.monotonic()
            wrong = await self._ask(asked % len(PROBLEMS), began)
            if wrong:
                self.failures.append((began, wrong))

    async def _ask(self, problem: int, began: float) -> str | None:
        body = {
            "problem": PROBLEMS[problem], "n": self.n, "max_tokens": self.max_tokens, "candidates": "full",
            "deadline_seconds": 120,
        }  # fmt: skip
        try:
            answer = await self.client.post("/v1/solve", json=body)
        except httpx.HTTPError as error:
            return f"no answer: {type(error).__name__}"
        if answer.status_code != 200:
            return f"status {answer.status_code}: {answer.text[:200]}"
        found, now = answer.json(), time.monotonic()
        self.answers.append((began, now - began, found["release"]))
        self.first.setdefault(found["release"], now)
        return mixed(found, self.releases, problem, self.n)


def mixed(answer: dict[str, Any], releases: dict[str, Release], problem: int, n: int) -> str | None:
    """What in an answer is not of the release that it names, or is missing; None: all is."""
    strange = foreign(answer, releases, problem)
    whole = answer["n_scored"] == n and answer["degraded_reason"] in (None, "truncated")  # its one letter has no end
    return strange or (None if whole else f"{answer['n_scored']} of {n} scored, {answer['degraded_reason']}")


def foreign(answer: dict[str, Any], releases: dict[str, Release], problem: int) -> str | None:
    """What in an answer, which may be of fewer candidates or scores than asked, is not of the release that it names."""
    release = releases.get(answer["release"])
    if release is None:
        return f"made by {answer['release']}, which was never promoted"
    served = answer["models"]["policy"], answer["models"]["reward"]
    if served != (release.policy, release.reward):
        return f"{release.id} is not {served}"
    letters = Counter(letter for one in answer["candidates"] for letter in set(one["text"]))
    scores = {one["score"] for one in answer["candidates"]} - {None}
    if set(letters) != {release.letter} or not scores <= {release.scores[problem]}:
        return (
            f"{release.id}: written {dict(letters)} for {release.letter}, scored {scores} for {release.scores[problem]}"
        )
    return None
