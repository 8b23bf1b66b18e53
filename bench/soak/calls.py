"""One call of the soak: what is asked, how, and how it ended."""

from __future__ import annotations

import asyncio
import enum
import gzip
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

Pool = list[tuple[str, list[str]]]
GRACE_SECONDS = 1.0
"""For the way of an answer over a busy machine; the service itself measures its deadline from the request's arrival."""
LOST_SECONDS = 15.0
"""So long after its deadline a call without an answer is lost."""


class Way(enum.StrEnum):
    """How a grouping is handed over."""

    WHOLE = "whole"
    STREAMED = "streamed"
    PAIRS = "pairs"
    LIVE = "live"


class Outcome(enum.StrEnum):
    """How a call ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    LEFT = "left"
    LATE = "late"
    LOST = "lost"


class Refused(Exception):
    """An answer that says why there is none. Its text is the code."""


@dataclass(frozen=True)
class Call:
    """A random grouping and how it is sent.

    Attributes:
        leaves: seconds after which the caller leaves; None: it stays.
        cuts: seed of where the pieces of a live call are cut.
    """

    url: str
    way: Way
    problem: int
    candidates: tuple[int, ...]
    deadline: float
    leaves: float | None
    cuts: int

    @classmethod
    def drawn(
        cls, draw: random.Random, pool: Pool, urls: Sequence[str], deadline: float | None = None, leaves: float = 0.05
    ) -> Call:
        """A random one; `leaves` is the share of callers who leave early."""
        problem = draw.randrange(len(pool))
        count = draw.randint(1, 8)
        return cls(
            url=draw.choice(list(urls)),
            way=draw.choice(list(Way)),
            problem=problem,
            candidates=tuple(draw.choices(range(len(pool[problem][1])), k=count)),
            deadline=deadline or draw.uniform(0.5, 20.0),
            leaves=draw.uniform(0.0, 1.0) if draw.random() < leaves else None,
            cuts=draw.randrange(2**31),
        )


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        code: of the refusal, or what went wrong.
        seconds: from the call to its end.
        slack: what was left of the deadline then, in seconds; negative when it was over.
        scores: how many came.
        changed: how many of them differ from their reference in any bit.
        sent: seconds since the soak began, when it was sent.
    """

    outcome: Outcome
    way: Way
    code: str
    seconds: float
    slack: float
    scores: int = 0
    changed: int = 0
    sent: float = 0.0

    def at(self, sent: float) -> Ended:
        """The same, with the time it was sent."""
        return replace(self, sent=sent)


@dataclass
class Caller:
    """Sends calls and compares what comes back."""

    client: httpx.AsyncClient
    urls: Sequence[str]
    key: str | None
    pool: Pool
    references: dict[tuple[int, int], float] = field(default_factory=dict)

    async def run(self, call: Call) -> Ended:
        """Send a call and say how it ended; never raises for what the service did."""
        began = time.monotonic()
        outcome, code, scores = Outcome.ANSWERED, "", list[float]()
        try:
            async with asyncio.timeout(call.deadline + LOST_SECONDS if call.leaves is None else call.leaves):
                scores = await self._scores(call)
        except TimeoutError:
            outcome, code = (Outcome.LOST, "no answer") if call.leaves is None else (Outcome.LEFT, "")
        except Refused as refusal:
            outcome, code = Outcome.REFUSED, str(refusal)
        except Exception as error:
            outcome, code = Outcome.LOST, f"{type(error).__name__}: {str(error)[:200]}"
        seconds = time.monotonic() - began
        slack = call.deadline - seconds
        if outcome in (Outcome.ANSWERED, Outcome.REFUSED) and slack < -GRACE_SECONDS:
            outcome = Outcome.LATE
        changed = self._changed(call, scores) if scores else 0
        return Ended(outcome, call.way, code, seconds, slack, len(scores), changed)

    async def memory(self, url: str) -> float:
        """Resident bytes of a service."""
        response = await self.client.get(f"{url}/metrics", timeout=10)
        lines = response.text.splitlines()
        found = [float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes")]
        if not found:
            raise RuntimeError(f"{url}/metrics does not say how much memory the process holds")
        return found[0]

    async def whole(self, url: str, problem: str, texts: Sequence[str], deadline: float) -> list[float]:
        """`POST /v1/score`, one answer."""
        body = {"problem": problem, "candidates": list(texts)}
        answer = (await self._post(url, "/v1/score", body, deadline)).json()
        return [row["score"] for row in answer["data"]]

    async def streamed(self, url: str, problem: str, texts: Sequence[str], deadline: float) -> list[float]:
        """The same as server-sent events."""
        body = {"problem": problem, "candidates": list(texts), "stream": True}
        reply = await self._post(url, "/v1/score", body, deadline)
        scores: dict[int, float] = {}
        for block in reply.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            if fields.get("event") == "score":
                row = json.loads(fields["data"])
                scores[row["index"]] = row["score"]
            elif fields.get("event") == "error":
                raise Refused(json.loads(fields["data"])["error"]["code"])
        return [scores[index] for index in range(len(texts))]

    async def pairs(self, url: str, problem: str, texts: Sequence[str], deadline: float) -> list[float]:
        """vLLM's `/score`."""
        body = {"text_1": problem, "text_2": list(texts), "use_activation": False}
        answer = (await self._post(url, "/score", body, deadline)).json()
        return [row["score"] for row in answer["data"]]

    async def live(self, url: str, problem: str, texts: Sequence[str], deadline: float, cuts: int) -> list[float]:
        """All candidates at once in random pieces."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        address = url.replace("http", "ws", 1) + "/v1/score/live"
        try:
            async with connect(address, additional_headers=headers, proxy=None, open_timeout=deadline) as socket:
                opened = {"type": "open", "messages": [{"role": "user", "content": problem}], "deadline": deadline}
                await socket.send(json.dumps(opened))
                for frame in pieces(texts, random.Random(cuts)):
                    await socket.send(json.dumps(frame))
                return await _live_scores(socket, len(texts))
        except InvalidStatus as error:
            raise Refused(error.response.headers.get("x-acemath-error-code", "")) from None

    async def _scores(self, call: Call) -> list[float]:
        problem, candidates = self.pool[call.problem]
        texts = [candidates[index] for index in call.candidates]
        if call.way is Way.LIVE:
            return await self.live(call.url, problem, texts, call.deadline, call.cuts)
        ways = {Way.WHOLE: self.whole, Way.STREAMED: self.streamed, Way.PAIRS: self.pairs}
        return await ways[call.way](call.url, problem, texts, call.deadline)

    async def _post(self, url: str, path: str, body: dict[str, Any], deadline: float) -> httpx.Response:
        headers = {"x-acemath-deadline-ms": str(max(1, int(deadline * 1000)))}
        headers |= {"authorization": f"Bearer {self.key}"} if self.key else {}
        response = await self.client.post(url + path, json=body, headers=headers)
        if not response.is_success:
            error = response.json()["error"]
            if error["code"] == "reward_overloaded" and "retry-after" not in response.headers:
                raise RuntimeError("overloaded without Retry-After")
            raise Refused(error["code"])
        return response

    def _changed(self, call: Call, scores: Sequence[float]) -> int:
        assert len(scores) == len(call.candidates)
        expected = [self.references[call.problem, index] for index in call.candidates]
        return sum(got != wanted for got, wanted in zip(scores, expected, strict=True))


async def _live_scores(socket: Any, count: int) -> list[float]:
    scores: dict[int, float] = {}
    while len(scores) < count:
        try:
            frame = json.loads(await socket.recv())
        except ConnectionClosed as closed:
            raise RuntimeError(f"closed without a reason: {closed}") from None
        if frame["type"] == "error":
            raise Refused(frame["code"])
        scores[frame["index"]] = frame["score"]
    return [scores[index] for index in range(count)]


def pieces(texts: Sequence[str], draw: random.Random) -> list[dict[str, Any]]:
    """The frames of all candidates, each cut at random places, in any order between candidates."""
    queues = []
    for index, text in enumerate(texts):
        cuts = sorted(draw.sample(range(1, max(len(text), 2)), k=min(draw.randint(0, 6), max(len(text) - 1, 0))))
        parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        frames = [{"type": "piece", "index": index, "text": part} for part in parts if part]
        queues.append([*frames, {"type": "end", "index": index}])
    made = []
    while queues:
        queue = draw.choice(queues)
        made.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return made


def read_pool(path: Path, problems: int, per_problem: int) -> Pool:
    """The first problems of a file with at least two different candidates; each candidate once."""
    found: Pool = []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for row in map(json.loads, lines):
            texts = list(dict.fromkeys(candidate["text"] for candidate in row["candidates"]))[:per_problem]
            if len(texts) > 1:
                found.append((row["problem"], texts))
            if len(found) == problems:
                break
    return found
