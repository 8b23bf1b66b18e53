"""The load is sent when it is due, and nothing that was not answered is left out."""

import asyncio
import itertools
import json
import statistics

import pytest

from bench.gateway.load import Load, Target, due_times, offer
from bench.gateway.table import added, ratios, tables
from doubles.instant_upstream import instant, routes_of_policy
from doubles.servers import RawServer, until

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def target(url: str, **fields: object) -> Target:
    host, _, port = url.removeprefix("http://").partition(":")
    return Target(host, int(port), "/v1/chat/completions", {"n": 2, **fields}, {"x-key": "k"})


def test_times_are_a_poisson_process_and_the_same_again():
    times = due_times(200, 50, seed=1)
    assert times == due_times(200, 50, seed=1) != due_times(200, 50, seed=2)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert 0.95 < statistics.mean(gaps) * 200 < 1.05 and 0.9 < statistics.stdev(gaps) * 200 < 1.1


async def test_what_answers_is_measured():
    async with instant(routes_of_policy("p@1", "")) as url:
        load = await offer(target(url), due_times(200, 0.5, seed=3), patience=60)
    assert (load.failed, load.unanswered) == (0, 0) and len(load.latencies) > 50
    assert 0 < load.percentile(0.5) <= load.percentile(0.99) < 60


async def test_a_server_that_stands_still_is_charged_for_what_was_due_meanwhile():
    async def stands_still(reader, writer) -> None:
        await asyncio.sleep(0.5)
        writer.write(ANSWER)
        await writer.drain()

    async with RawServer(stands_still).serving() as url:
        load = await offer(target(url), [0.0, 0.1, 0.2], patience=60)
    assert len(load.latencies) == 3 and min(load.latencies) >= 0.5 and load.seconds >= 0.7


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n", b"", b"nonsense\r\n\r\n"])
async def test_what_fails_is_slower_than_all_percentiles(answer):
    async def fails(reader, writer) -> None:
        writer.write(answer)
        await writer.drain()

    async with RawServer(fails).serving() as url:
        load = await offer(target(url), [0.0, 0.01], patience=60)
    assert (load.failed, load.unanswered, load.percentile(0.5)) == (2, 0, None)


async def test_what_never_comes_is_counted_and_its_connection_closed():
    async def never(reader, writer) -> None:
        await reader.read()

    server = RawServer(never)
    async with server.serving() as url:
        load = await offer(target(url), [0.0, 0.01], patience=0.2)
        await until(lambda: server.open == 0)
    assert (load.failed, load.unanswered) == (0, 2)


def test_percentiles_count_what_was_not_answered():
    load = Load([0.001] * 98, failed=1, unanswered=1, seconds=1.0)
    assert load.percentile(0.98) == 0.001 and load.percentile(0.99) is None


def a_cell(leg: str, turn: int, p50: float | None, p99: float | None, **more: object) -> dict[str, object]:
    cell = {"leg": leg, "n": 8, "rate": 100.0, "round": turn, "p50": p50, "p99": p99, "sent": 100, "answered": 100}
    return cell | {"server_cpu_seconds": 0.5, "other_cores": 0.9} | more


def test_tables_show_what_is_added_how_many_times_as_much_and_floods():
    cells = [a_cell("direct", t, 1.0, 2.0) for t in (0, 1)] + [a_cell("acemath", t, 3.0, 5.0) for t in (0, 1)]
    cells += [a_cell("litellm", t, 11.0, None, answered=40) for t in (0, 1)]
    arguments = {"server_core": 1, "load_core": 0, "rounds": 2, "seconds": 1.0, "disturbed": 1.05}
    document = {"cells": cells, "failed": {"optillm-bon": "it ended"}, "arguments": arguments, "does": {}}
    document |= {"machine": {"cpu": "X", "cores": 2, "python": "3.11"}, "at": "now", "commit": "abc"}
    assert added(document, "acemath", 8, 100.0, "p50") == {0: 2.0, 1: 2.0}
    assert ratios(document, "litellm", 8, 100.0, "p50")["median"] == 5.0
    assert ratios(document, "litellm", 8, 100.0, "p99") == {}
    text = tables(json.loads(json.dumps(document)))
    assert "2.00 (2.00-2.00) / 4.00 (4.00-4.00)" in text and "flooded: 40% answered" in text
    assert "optillm-bon failed: it ended" in text and "5 (5-5) / -" in text
