"""`acemath jobs` at a real gateway on a real Redis."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner, Result

from acemath_cli import job_client
from acemath_cli.app import build_app
from doubles.gateway_app import PROBLEM, SCRIPT, GatewayOnDoubles, eventually, served
from doubles.job_client import file, gateway
from doubles.ports import ScriptedPolicy
from doubles.valkey import ValkeyServer


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(file(12))
    return path


async def acemath(url: str, *arguments: str, stdin: bytes = b"") -> Result:
    call = (build_app(), ["jobs", *arguments, "--url", url])
    return await asyncio.to_thread(CliRunner().invoke, *call, input=stdin, env={"COLUMNS": "160"})


async def test_submit_watch_and_results(valkey, problems, tmp_path):
    async with served(gateway(valkey).app()) as url:
        made = await acemath(url, "submit", str(problems))
        job = made.stdout.strip()
        assert made.exit_code == 0 and job.startswith("job_")
        watched = await acemath(url, "watch", job)
        assert watched.exit_code == 0 and f"{job}  completed  12/12" in watched.stdout, watched.output
        lines = (await acemath(url, "results", job, "--offset", "10")).stdout.splitlines()
        assert [line.split("\t")[:3] for line in lines] == [["11", "succeeded", "24"], ["12", "succeeded", "24"]]
        rows = (await acemath(url, "results", job, "--json")).stdout.splitlines()
        assert [json.loads(row)["line"] for row in rows] == list(range(1, 13))
        out = tmp_path / "out.jsonl"
        written = await acemath(url, "results", job, "-o", str(out))
        assert "12 results" in written.stderr and out.read_text().splitlines() == rows
        listed = json.loads((await acemath(url, "list", "--json")).stdout)
        assert job in [one["id"] for one in listed["data"]] and job in (await acemath(url, "list")).stdout


async def test_one_problem_waited_for_as_json(valkey):
    async with served(gateway(valkey).app()) as url:
        done = await acemath(url, "submit", "--problem", PROBLEM, "-n", "3", "--seed", "0", "--watch", "--json")
        assert done.exit_code == 0 and json.loads(done.stdout)["counts"]["succeeded"] == 1
        piped = await acemath(url, "submit", "-", "--idempotency-key", "k", stdin=file(2))
        again = await acemath(url, "submit", "-", "--idempotency-key", "k", stdin=file(2))
        assert piped.exit_code == 0 and piped.stdout == again.stdout


async def test_pages_are_fetched_until_there_are_no_more(valkey, problems, monkeypatch):
    monkeypatch.setattr(job_client, "_PAGE", 5)
    async with served(gateway(valkey).app()) as url:
        job = json.loads((await acemath(url, "submit", str(problems), "--watch", "--json")).stdout)["id"]
        rows = (await acemath(url, "results", job, "--json")).stdout.splitlines()
        assert [json.loads(row)["line"] for row in rows] == list(range(1, 13))


async def test_cancel_ends_the_one_who_watches_with_status_1(valkey, problems, monkeypatch):
    real, asked = job_client.Jobs._events, []
    monkeypatch.setattr(job_client.Jobs, "_events", lambda *args: asked.append(args) or real(*args))
    policy = ScriptedPolicy(SCRIPT, hang_after=1)
    async with served(gateway(valkey, policy=policy).app()) as url:
        job = (await acemath(url, "submit", str(problems))).stdout.strip()
        await eventually(lambda: policy.running > 0)
        watching = asyncio.create_task(acemath(url, "watch", job))
        await eventually(lambda: asked)
        gone = await acemath(url, "cancel", job)
        assert gone.exit_code == 0 and "cancelled" in gone.stdout
        watched = await watching
        assert watched.exit_code == 1 and "cancelled" in watched.stdout


async def test_a_broken_stream_is_taken_up_where_it_stopped(valkey, problems, monkeypatch):
    monkeypatch.setattr(job_client, "_PAUSE_SECONDS", 0.05)
    policy, loop = ScriptedPolicy(SCRIPT, gate=asyncio.Event()), asyncio.get_running_loop()
    one = gateway(valkey, policy=policy)
    real, asked = job_client.Jobs._events, []

    def breaking(self, job_id, last):
        asked.append(last)
        for event in real(self, job_id, last):
            loop.call_soon_threadsafe(policy.gate.set)  # nothing ends before it is listened for
            yield event
            if event[0] != last and len(asked) < 3:
                raise job_client._Broken("cut")

    monkeypatch.setattr(job_client.Jobs, "_events", breaking)
    async with served(one.app()) as url:
        done = await acemath(url, "submit", str(problems), "--watch")
        assert done.exit_code == 0 and "completed  12/12" in done.stdout
    assert asked[0] == "0" and len(asked) >= 2 and int(asked[1]) > 0


WRONG = [
    (("submit",), "give a file, or --problem"),
    (("submit", "x.jsonl", "--problem", "x"), "give a file, or --problem"),
    (("submit", "/nonexistent.jsonl"), "No such file"),
    (("submit", "-", "-n", "3"), "--n goes with --problem"),
    (("submit", "--problem", "x", "-n", "65"), "less than or equal to 64"),
    (("watch", "../x"), "is not the id of a job"),
    (("results", "job_" + "0" * 32), "503 jobs_unavailable"),
    (("submit", "--problem", "x", "--webhook", "https://x.test/"), "400 invalid_request: x-acemath-webhook"),
]


async def test_what_is_wrong_is_one_sentence_and_exit_code_1():
    async with served(GatewayOnDoubles().app()) as url:
        for arguments, says in WRONG:
            result = await acemath(url, *arguments)
            assert result.exit_code == 1 and says in result.stderr and "Traceback" not in result.output


async def test_a_bad_line_is_named(valkey, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(file(1) + b'{"problm": "x"}\n')
    async with served(gateway(valkey).app()) as url:
        result = await acemath(url, "submit", str(path))
        assert result.exit_code == 1 and "line 2: unknown or unsupported field 'problm'" in result.stderr


async def test_nobody_there_says_how_to_start_it(free_port):
    result = await acemath(f"http://127.0.0.1:{free_port()}", "list")
    assert result.exit_code == 1 and "make run" in result.stderr
