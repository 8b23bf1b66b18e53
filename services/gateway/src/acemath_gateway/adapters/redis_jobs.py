"""Jobs on the Redis that gateways share.

| key                         | type   | holds                                                                       |
|-----------------------------|--------|-----------------------------------------------------------------------------|
| `acemath:jobs:all`          | zset   | every job by the time it was made                                           |
| `acemath:jobs:active`       | zset   | those that have not ended, the one that was served longest ago first        |
| `acemath:jobs:notices`      | zset   | jobs whose end is to be told, by when                                       |
| `acemath:job:<id>`          | hash   | owner, state, counts, times, tokens, webhook                                |
| `acemath:job:<id>:lines`    | stream | lines without a result; group `workers`: who has which, since when, how oft |
| `acemath:job:<id>:results`  | hash   | line → its row                                                              |
| `acemath:job:<id>:done`     | list   | `line:state` in the order in which results came                             |
| `acemath:jobs:take:<uuid>`  | hash   | what a call took, for ten seconds: one that is sent twice takes one line    |

None of it may be lost, and all of it runs out by itself. Times are Redis' own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import cast

from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_core.jobs import FinishedLine, JobState, LineState, WebhookState
from acemath_gateway.adapters import redis_job_scripts as scripts
from acemath_gateway.adapters import redis_notice_scripts as notices
from acemath_gateway.adapters.redis_link import Argument, RedisLink, StoreAway
from acemath_gateway.jobqueue.store import Finished, Kept, Made, NewJob, Notice, Rules, Stock, StoredJob, TakenLine

_LINES_IN_ONE_CALL = 200
_BYTES_IN_ONE_CALL = 512 * 1024
_STAGED_MS = 60_000  # a job is handed over in far less
_ROWS_IN_ONE_CALL = 20
_JOBS_FULL_SECONDS = 30.0


class RedisJobStore:
    """`JobStore` on Redis, for one worker process.

    Args:
        link: the connection.
        rules: the bounds.
        instance: this gateway's name, for who reads the stream by hand.
    """

    def __init__(self, link: RedisLink, rules: Rules, *, instance: str) -> None:
        self._link, self._rules = link, rules
        self._worker = f"{instance}:{uuid.uuid4().hex[:8]}"
        self._held: dict[tuple[str, int], TakenLine] = {}
        self._others_rest_until = 0.0
        link.on_recovery(self._assert_again)

    async def make(self, job: NewJob) -> Made:
        """See `JobStore.make`."""
        args: list[Argument] = [job.id, job.fingerprint, len(job.lines), self._rules.max_stored]
        args.append(self._rules.max_queued_lines)
        made = _made(await self._run(scripts.ROOM, [], args))
        if made is Made.KNOWN:
            return made
        stream = f"acemath:job:{job.id}:new:{uuid.uuid4().hex}"
        for first, lines in _in_pieces(job.lines):
            await self._run(scripts.ADD, [stream], [first, _STAGED_MS, *lines])
        window_ms, kept_ms = 1000 * self._rules.window_seconds, 1000 * self._rules.kept_seconds
        more: list[Argument] = [job.owner, window_ms, kept_ms, job.webhook_url or ""]
        return _made(await self._run(scripts.OPEN, [stream], args + more))

    async def read(self, job_id: str, *, after: int = 0, limit: int = 0) -> StoredJob | None:
        """See `JobStore.read`."""
        reply = await self._run(scripts.READ, [], [job_id, after, limit])
        return None if reply is None else _job(reply)

    async def of_owner(self, owner: str, limit: int) -> list[StoredJob]:
        """See `JobStore.of_owner`."""
        return [_job(reply) for reply in cast("list[object]", await self._run(scripts.OF_OWNER, [], [owner, limit]))]

    async def results(self, job_id: str, lines: Sequence[int]) -> list[bytes | None]:
        """See `JobStore.results`."""
        rows: list[bytes | None] = []
        for start in range(0, len(lines), _ROWS_IN_ONE_CALL):
            some = lines[start : start + _ROWS_IN_ONE_CALL]
            reply = await self._run(scripts.RESULTS, [f"acemath:job:{job_id}:results"], some)
            rows += cast("list[bytes | None]", reply)
        return rows

    async def cancel(self, job_id: str) -> None:
        """See `JobStore.cancel`."""
        await self._run(scripts.CANCEL, [], [job_id])

    async def take(self) -> TakenLine | None:
        """See `JobStore.take`. After Redis was away nothing is taken from others until they have had time to beat."""
        idle_ms = 0 if time.monotonic() < self._others_rest_until else int(1000 * self._rules.idle_seconds)
        token = f"acemath:jobs:take:{uuid.uuid4().hex}"
        reply = cast("list[bytes] | None", await self._run(scripts.TAKE, [token], [self._worker, idle_ms]))
        if reply is None:
            return None
        taken = TakenLine(reply[0].decode(), int(reply[1].split(b"-")[0]), int(reply[2]), reply[3], reply[4].decode())
        self._held[taken.job, taken.line] = taken
        return taken

    async def beat(self) -> list[TakenLine]:
        """See `JobStore.beat`."""
        try:
            return await self._beat(recovering=False)
        except StoreAway as error:
            raise _away() from error

    async def finish(self, line: TakenLine, result: Finished) -> Kept:
        """See `JobStore.finish`."""
        args: list[Argument] = [line.job, f"{line.line}-0", line.line, result.state, result.row]
        args += [result.prompt_tokens, result.completion_tokens, self._rules.max_result_bytes]
        kept = Kept(cast("bytes", await self._run(scripts.FINISH, [], args)).decode())
        if kept is not Kept.FULL:
            self.drop(line)
        return kept

    async def put_back(self, line: TakenLine, *, after_seconds: float, count: bool) -> None:
        """See `JobStore.put_back`."""
        self.drop(line)
        idle_ms = int(1000 * max(0.0, self._rules.idle_seconds - after_seconds))
        runs = line.runs if count else line.runs - 1
        await self._run(scripts.PUT_BACK, [], [self._worker, line.job, f"{line.line}-0", idle_ms, runs])

    def drop(self, line: TakenLine) -> None:
        """See `JobStore.drop`."""
        self._held.pop((line.job, line.line), None)

    async def stock(self) -> Stock:
        """See `JobStore.stock`."""
        reply = cast("list[bytes]", await self._run(scripts.STOCK, [], []))
        jobs = dict.fromkeys(JobState, 0)
        jobs |= {JobState(state.decode()): int(n) for state, n in zip(reply[2::2], reply[3::2], strict=True)}
        return Stock(jobs, int(reply[0]), int(reply[1]) / 1000)

    async def due_notice(self, lease_seconds: float) -> Notice | None:
        """See `JobStore.due_notice`."""
        reply = await self._run(notices.DUE, [], [int(1000 * lease_seconds)])
        if reply is None:
            return None
        job = _job(reply)
        return Notice(job, job.webhook_attempts)

    async def notice_done(self, job_id: str, problem: str | None, again_seconds: float | None) -> None:
        """See `JobStore.notice_done`."""
        state = WebhookState.DELIVERED if problem is None else WebhookState.FAILED
        if again_seconds is not None:
            state = WebhookState.PENDING
        again_ms = 0 if again_seconds is None else max(1, int(1000 * again_seconds))
        await self._run(notices.NOTICED, [], [job_id, state, problem or "", again_ms])

    async def _assert_again(self) -> None:
        self._others_rest_until = time.monotonic() + self._rules.idle_seconds
        await self._beat(recovering=True)

    async def _beat(self, *, recovering: bool) -> list[TakenLine]:
        held = list(self._held.values())
        if not held:
            return []
        pairs: list[Argument] = [part for line in held for part in (line.job, f"{line.line}-0")]
        gone = await self._link.run(scripts.BEAT, [], [self._worker, *pairs], recovering=recovering)
        if recovering:
            return []  # the worker's next beat tells it
        lost = [held[int(position)] for position in cast("list[int]", gone)]
        return [line for line in lost if self._held.pop((line.job, line.line), None) is not None]

    async def _run(self, script: str, keys: Sequence[str], args: Sequence[Argument]) -> object:
        try:
            return await self._link.run(script, keys, args)
        except StoreAway as error:
            raise _away() from error


def _made(reply: object) -> Made:
    answer = cast("bytes", reply).decode()
    if answer == "conflict":
        raise Conflict(
            "this Idempotency-Key was used for another job; send the same job again, or another key",
            code=ErrorCode.IDEMPOTENCY_CONFLICT,
            should_retry=False,
        )
    if answer == "full":
        raise Unavailable(
            "the queue of jobs is full; try again after the time in Retry-After, or delete jobs that you need no more",
            code=ErrorCode.JOBS_FULL,
            retry_after=_JOBS_FULL_SECONDS,
        )
    if answer == "lost":
        raise _away()
    return Made(answer)


def _away() -> Unavailable:
    return Unavailable(
        "jobs cannot be had while the shared store is away; try again shortly: nothing that was accepted is lost",
        code=ErrorCode.JOBS_UNAVAILABLE,
        retry_after=2.0,
    )


def _in_pieces(lines: Sequence[bytes]) -> list[tuple[int, list[bytes]]]:
    """The lines in pieces that one call carries, each with the number of its first line."""
    pieces: list[tuple[int, list[bytes]]] = []
    size = 0
    for number, line in enumerate(lines, 1):
        if not pieces or len(pieces[-1][1]) == _LINES_IN_ONE_CALL or size + len(line) > _BYTES_IN_ONE_CALL:
            pieces.append((number, []))
            size = 0
        pieces[-1][1].append(line)
        size += len(line)
    return pieces


def _job(reply: object) -> StoredJob:
    parts = cast("list[object]", reply)
    flat = [text.decode() for text in cast("list[bytes]", parts[2])]
    kept = dict(zip(flat[::2], flat[1::2], strict=True))
    finished = cast("list[bytes]", parts[3]) if len(parts) > 3 else []
    state = JobState(kept["state"])
    expires = int(kept["ended"]) + int(kept["kept"]) if state.ended else int(kept["until"])
    return StoredJob(
        id=cast("bytes", parts[0]).decode(),
        owner=kept["owner"],
        state=state,
        created=int(kept["created"]) / 1000,
        started=_seconds(kept.get("started")),
        ended=_seconds(kept.get("ended")),
        expires=expires / 1000,
        total=int(kept["total"]),
        succeeded=int(kept["succeeded"]),
        failed=int(kept["failed"]),
        running=cast("int", parts[1]),
        prompt_tokens=int(kept["prompt_tokens"]),
        completion_tokens=int(kept["completion_tokens"]),
        webhook_url=kept.get("webhook_url"),
        webhook_state=WebhookState(kept["webhook_state"]) if "webhook_state" in kept else None,
        webhook_attempts=int(kept.get("webhook_attempts", 0)),
        webhook_problem=kept.get("webhook_problem") or None,
        finished=tuple(_finished(one.decode()) for one in finished),
    )


def _seconds(ms: str | None) -> float | None:
    return None if ms is None else int(ms) / 1000


def _finished(entry: str) -> FinishedLine:
    line, state = entry.split(":")
    return FinishedLine(line=int(line), state=LineState(state))
