"""Workers that take lines of jobs on a real server of the Redis protocol, and die: nothing runs too often."""

from gateway.stored_jobs import RULES, done, grow_idle, idle_seconds, job, store

from acemath_gateway.jobqueue.store import Kept


async def test_a_dead_workers_line_goes_to_another_and_not_a_living_ones(valkey):
    async with store(valkey.url, name="dead") as dead, store(valkey.url, name="alive") as alive:
        await dead.make(job(lines=2))
        lost, kept = await dead.take(), await alive.take()
        grow_idle(valkey, "j")
        assert await alive.beat() == [] and idle_seconds(valkey, kept) < RULES.idle_seconds
        again = await dead.take()
        assert (again.line, again.runs) == (lost.line, 2)  # of two that it could take over, only its own was idle
        assert await alive.finish(kept, done(kept.line)) is Kept.KEPT


async def test_a_line_has_one_result_whoever_comes_with_another(valkey):
    async with store(valkey.url) as slow, store(valkey.url) as quick:
        await slow.make(job(lines=2))
        line = await slow.take()
        grow_idle(valkey, "j")
        taken_over = await quick.take()
        assert taken_over.line == line.line
        assert await slow.beat() == [line]  # and is told so
        assert await slow.finish(line, done(1, row=b"slow")) is Kept.KEPT
        assert await quick.finish(taken_over, done(1, row=b"quick")) is Kept.KNOWN
        assert await quick.results("j", [1]) == [b"slow"] and (await quick.read("j")).done == 1
        assert await quick.beat() == []


async def test_each_time_that_a_line_is_taken_up_counts(valkey):
    async with store(valkey.url) as a:
        await a.make(job(lines=1))
        runs = []
        for _ in range(3):
            runs.append((await a.take()).runs)
            grow_idle(valkey, "j")
        assert runs == [1, 2, 3]


async def test_a_line_that_is_put_back_comes_when_it_should(valkey):
    async with store(valkey.url) as a, store(valkey.url) as b:
        await a.make(job(lines=1))
        await a.put_back(await a.take(), after_seconds=0.0, count=False)
        line = await b.take()
        assert line.runs == 1
        await b.put_back(line, after_seconds=RULES.idle_seconds / 2, count=True)
        assert await a.take() is None and (await a.read("j")).running == 0
        grow_idle(valkey, "j", seconds=RULES.idle_seconds / 2)
        assert (await a.take()).runs == 2


async def test_a_call_that_is_sent_twice_takes_one_line(valkey):
    async with store(valkey.url) as a:
        await a.make(job())
        run = a._link.run

        async def twice(script, keys, args, **other):
            first = await run(script, keys, args, **other)
            second = await run(script, keys, args, **other)
            return second if isinstance(second, list) else first

        a._link.run = twice
        lines = [await a.take(), await a.take()]
        assert [(line.line, line.runs) for line in lines] == [(1, 1), (2, 1)]
        await a.put_back(lines[0], after_seconds=0.0, count=False)
        assert await a.finish(lines[1], done(2)) is Kept.KEPT
        assert (await a.take()).line == 1
        assert (await a.read("j")).done == 1 and (await a.stock()).lines == 2


async def test_right_after_redis_was_away_nothing_is_taken_from_others(valkey):
    async with store(valkey.url) as dead, store(valkey.url) as alive:
        await dead.make(job(lines=1))
        await dead.take()
        grow_idle(valkey, "j")
        await alive._assert_again()
        assert await alive.take() is None
        alive._others_rest_until -= RULES.idle_seconds
        assert (await alive.take()).runs == 2
