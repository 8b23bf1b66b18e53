"""Jobs on a real server of the Redis protocol: nothing half-accepted, nothing kept twice, and all of it ends."""

import asyncio
import re
from dataclasses import replace

import pytest
from gateway.stored_jobs import RULES, done, job, store

from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_core.jobs import JobState, LineState, WebhookState
from acemath_gateway.jobqueue.store import Kept, Made
from doubles.gateway_app import eventually


async def test_a_job_is_taken_line_by_line_and_ends_with_its_last_result(valkey):
    async with store(valkey.url) as a:
        assert await a.make(job()) is Made.MADE
        made = await a.read("j")
        assert (made.state, made.total, made.running, made.done) == (JobState.QUEUED, 3, 0, 0)
        lines = [await a.take() for _ in range(3)]
        assert [(line.job, line.line, line.runs) for line in lines] == [("j", 1, 1), ("j", 2, 1), ("j", 3, 1)]
        assert lines[1].body == b'{"problem": "2"}' and await a.take() is None
        assert (await a.read("j")).running == 3
        for line in reversed(lines):
            state = LineState.FAILED if line.line == 2 else LineState.SUCCEEDED
            assert await a.finish(line, done(line.line, state)) is Kept.KEPT
        ended = await a.read("j", after=1, limit=5)
        assert (ended.state, ended.succeeded, ended.failed, ended.running) == (JobState.COMPLETED, 2, 1, 0)
        assert (ended.prompt_tokens, ended.completion_tokens) == (30, 60)
        assert [(one.line, one.state) for one in ended.finished] == [(2, "failed"), (1, "succeeded")]
        assert ended.created <= ended.started <= ended.ended < ended.expires
        assert await a.results("j", [3, 4, 1]) == [b'{"line": 3}', None, b'{"line": 1}']


async def test_a_job_of_which_no_line_succeeded_has_failed(valkey):
    async with store(valkey.url) as a:
        await a.make(job(lines=1))
        await a.finish(await a.take(), done(1, LineState.FAILED))
        assert (await a.read("j")).state is JobState.FAILED


async def test_jobs_take_turns(valkey):
    async with store(valkey.url) as a:
        await a.make(job("long", lines=50))
        await a.take()
        await a.make(job("short", lines=2))
        assert [(await a.take()).job for _ in range(5)] == ["short", "long", "short", "long", "long"]


async def test_thousands_of_lines_are_there_in_order(valkey):
    async with store(valkey.url, replace(RULES, max_queued_lines=10_000)) as a:
        lines = [b"%d" % number + b"x" * (number % 997) for number in range(1, 5001)]
        await a.make(replace(job(), lines=lines))
        assert [(await a.take()).body for _ in range(300)] == lines[:300]


async def test_the_same_job_is_made_once_and_another_with_its_id_is_refused(valkey):
    async with store(valkey.url) as a:
        assert [await a.make(job()) for _ in range(2)] == [Made.MADE, Made.KNOWN]
        with pytest.raises(Conflict) as conflict:
            await a.make(job(fingerprint="g"))
        assert conflict.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
        assert (await a.read("j")).total == 3


@pytest.mark.parametrize("rules", [replace(RULES, max_stored=1), replace(RULES, max_queued_lines=5)])
async def test_a_full_queue_takes_nothing_and_leaves_nothing_behind(valkey, rules):
    async with store(valkey.url, rules) as a:
        await a.make(job("one"))
        with pytest.raises(Unavailable) as full:
            await a.make(job("two"))
        assert full.value.code is ErrorCode.JOBS_FULL and full.value.retry_after
        assert await a.read("two") is None and b"two" not in valkey.ask("KEYS *")


async def test_racing_jobs_never_overfill_the_queue(valkey):
    async with store(valkey.url, replace(RULES, max_queued_lines=20)) as a, store(valkey.url) as b:
        b._rules = a._rules
        jobs = (s.make(job(f"{i}")) for i, s in enumerate([a, b] * 8))
        made = await asyncio.gather(*jobs, return_exceptions=True)
        assert made.count(Made.MADE) == 6 and (await a.stock()).lines == 18
        assert b":new:" not in valkey.ask("KEYS *")


# ------------------------------------------------------------------------------------------- ends, bounds and restarts


async def test_a_cancelled_job_gives_no_more_lines_and_stops_those_that_run(valkey):
    async with store(valkey.url) as a, store(valkey.url) as b:
        await a.make(job())
        first, second = await a.take(), await a.take()
        await a.finish(first, done(1))
        await b.cancel("j")
        assert await b.take() is None and await a.beat() == [second]
        assert await a.finish(second, done(2)) is Kept.ENDED
        ended = await b.read("j")
        assert (ended.state, ended.done, ended.running) == (JobState.CANCELLED, 1, 0)
        await b.cancel("j")
        assert await b.results("j", [1, 2]) == [b'{"line": 1}', None]


async def test_a_job_over_its_time_ends_and_what_it_has_is_kept(valkey):
    async with store(valkey.url) as a:
        await a.make(job(webhook_url="https://hooks.test/"))
        await a.finish(await a.take(), done(1))
        made = await a.read("j")
        assert made.expires - made.created == RULES.window_seconds
        valkey.ask("HINCRBY acemath:job:j until -60000")  # as if that had passed
        assert await a.take() is None
        ended = await a.read("j")
        assert (ended.state, ended.done, ended.webhook_state) == (JobState.EXPIRED, 1, WebhookState.PENDING)


async def test_all_of_a_job_is_forgotten_in_time(valkey):
    async with store(valkey.url) as a:
        await a.make(job(lines=1))
        await a.make(job("other", lines=1))
        await a.finish(await a.take(), done(1))
        kept = [key.decode() for key in valkey.ask("KEYS acemath:job:j*").split(b"\r\n")[2::2]]
        assert len(kept) == 3 and all(0 < valkey.number(f"PTTL {key}") <= 60_000 for key in kept)
        for key in kept:
            valkey.ask(f"PEXPIRE {key} 1")  # as if that had passed
        await eventually(lambda: valkey.ask("KEYS acemath:job:j*") == b"*0\r\n")
        assert await a.read("j") is None and await a.results("j", [1]) == [None]
        await a.make(job("third", lines=1))
        assert b"acemath:job:j" not in valkey.ask("KEYS *") and b"\nj\r" not in valkey.ask(
            "ZRANGE acemath:jobs:all 0 -1"
        )


async def test_results_have_a_largest_size(valkey):
    async with store(valkey.url, replace(RULES, max_result_bytes=100)) as a:
        await a.make(job(lines=2))
        one, two = await a.take(), await a.take()
        assert await a.finish(one, done(1, row=b"x" * 90)) is Kept.KEPT
        assert await a.finish(two, done(2, row=b"x" * 90)) is Kept.FULL
        assert await a.finish(two, done(2, LineState.FAILED, b"x" * 20)) is Kept.KEPT
        assert (await a.read("j")).state is JobState.COMPLETED


@pytest.fixture
def bounded(valkey):
    """The server with a bound on its memory, and what fills a share of it."""

    def fill(share):
        valkey.ask("DEL filler")
        valkey.ask("CONFIG SET maxmemory 0")
        most = 64 * 2**20
        used = int(re.search(rb"used_memory:(\d+)", valkey.ask("INFO memory"))[1])
        valkey.ask(f"SETRANGE filler {int(most * share) - used} x")
        valkey.ask(f"CONFIG SET maxmemory {most}")

    yield fill
    valkey.ask("CONFIG SET maxmemory 0")
    valkey.ask("DEL filler")


async def test_jobs_leave_room_for_what_must_always_be_written(valkey, bounded):
    async with store(valkey.url) as a:
        bounded(0.6)
        await a.make(job("one", lines=2))
        bounded(0.7)
        with pytest.raises(Unavailable) as full:
            await a.make(job("two"))
        assert full.value.code is ErrorCode.JOBS_FULL and await a.read("two") is None
        first, second = await a.take(), await a.take()
        assert await a.finish(first, done(1)) is Kept.KEPT, "what was accepted is worked on"
        bounded(0.93)
        assert await a.finish(second, done(2)) is Kept.FULL
        assert await a.finish(second, done(2, LineState.FAILED, b"too much")) is Kept.KEPT
        bounded(0.5)
        await a.make(job("two"))


async def test_jobs_survive_a_restart_of_the_server(valkey):
    valkey.sync_always()
    async with store(valkey.url) as a:
        await a.make(job())
        line = await a.take()
        await a.finish(await a.take(), done(2))
        valkey.stop()
        with pytest.raises(Unavailable) as away:
            await a.make(job("other"))
        assert away.value.code is ErrorCode.JOBS_UNAVAILABLE and away.value.retry_after
        valkey.start()
        await eventually(lambda: a._link.up)
        assert await a.beat() == [] and await a.finish(line, done(1)) is Kept.KEPT
        assert (await a.take()).line == 3 and (await a.read("j")).done == 2


async def test_the_list_is_the_callers_and_the_youngest_first(valkey):
    async with store(valkey.url) as a:
        for name, owner in (("1", "me"), ("2", "you"), ("3", "me")):
            await a.make(job(name, owner=owner))
            await asyncio.sleep(0.005)
        assert [one.id for one in await a.of_owner("me", 10)] == ["3", "1"]
        assert [one.id for one in await a.of_owner("me", 1)] == ["3"]


async def test_the_stock_says_how_much_waits_and_for_how_long(valkey):
    async with store(valkey.url) as a:
        assert (await a.stock()).oldest_seconds == 0
        await a.make(job(lines=1))
        await a.finish(await a.take(), done(1))
        await a.make(job("k", lines=4))
        valkey.ask("HINCRBY acemath:job:k created -60000")
        stock = await a.stock()
        assert stock.lines == 4 and stock.oldest_seconds == pytest.approx(60, abs=20)
        assert (stock.jobs[JobState.QUEUED], stock.jobs[JobState.COMPLETED]) == (1, 1)


async def test_a_notice_is_due_at_the_end_and_again_until_it_is_done(valkey):
    async with store(valkey.url) as a, store(valkey.url) as b:
        await a.make(job(lines=1, webhook_url="https://hooks.test/x"))
        assert await a.due_notice(60) is None
        await a.finish(await a.take(), done(1))
        first = await a.due_notice(60)
        assert (first.job.id, first.attempt, first.job.webhook_url) == ("j", 1, "https://hooks.test/x")
        assert await b.due_notice(60) is None
        valkey.ask("ZINCRBY acemath:jobs:notices -60000 j")  # a minute later whoever had it is gone
        assert (await b.due_notice(60)).attempt == 2
        await b.notice_done("j", "HTTP 500", 30)
        assert (await b.read("j")).webhook_problem == "HTTP 500" and await a.due_notice(60) is None
        valkey.ask("ZINCRBY acemath:jobs:notices -30000 j")
        assert (await a.due_notice(60)).attempt == 3
        await a.notice_done("j", None, None)
        told = await a.read("j")
        assert (told.webhook_state, told.webhook_problem, told.webhook_attempts) == (WebhookState.DELIVERED, None, 3)
