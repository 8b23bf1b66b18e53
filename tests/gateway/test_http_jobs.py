"""Jobs from the door to the results: on real Redis, over HTTP, worked on by whichever gateway has room."""

import asyncio
import json
import time
from collections.abc import Callable

import httpx

from acemath_core.errors import ErrorCode, InvalidRequest, Unavailable
from acemath_gateway.jobqueue import worker
from doubles.gateway_app import PROBLEM, SCRIPT, GatewayOnDoubles, eventually, eventually_true
from doubles.job_client import NDJSON, PATIENT, clients, ended, file, gateway, rows_of, submitted
from doubles.ports import ScriptedPolicy

# ------------------------------------------------------------------------------------------------------ the whole way


async def test_a_file_goes_in_and_its_results_come_out_in_its_order(valkey):
    async with clients(gateway(valkey, settings=PATIENT)) as http:
        answer = await http.post("/v1/jobs", content=file(12, candidates="scores"), headers=NDJSON)
        made = answer.json()
        assert answer.status_code == 202 and answer.headers["location"] == made["links"]["self"]
        assert made["counts"]["total"] == 12 and made["state"] in ("queued", "running")
        job = await ended(http, made["id"])
        assert (job["state"], job["progress"], job["counts"]["succeeded"]) == ("completed", 1.0, 12)
        assert job["created"] <= job["started"] <= job["ended"] < job["expires"] and job["webhook"] is None
        rows = await rows_of(http, job["id"])
        assert [row["line"] for row in rows] == list(range(1, 13))
        assert {(row["state"], row["runs"], row["solution"]["answer"]) for row in rows} == {("succeeded", 1, "24")}
        assert len(rows[0]["solution"]["candidates"]) == 3
        assert job["usage"]["completion_tokens"] == sum(r["solution"]["usage"]["completion_tokens"] for r in rows)
        assert [row["line"] for row in await rows_of(http, job["id"], offset=5, limit=4)] == [6, 7, 8, 9]
        assert await rows_of(http, job["id"], offset=12) == []
        lines = 'job_lines_total{outcome="succeeded"} 12.0', "inflight_sequences 0.0", "job_running_lines 0.0"

        async def shown() -> bool:
            metrics = (await http.get("/metrics")).text
            return all(f"acemath_gateway_{line}" in metrics for line in lines)

        await eventually_true(shown)  # Redis knows of the end sooner than the worker


async def test_one_problem_is_a_job_of_one_line(valkey):
    async with clients(gateway(valkey)) as http:
        answer = await http.post("/v1/jobs", json={"problem": PROBLEM, "n": 3, "seed": 0})
        job = await ended(http, answer.json()["id"])
        assert [row["solution"]["answer"] for row in await rows_of(http, job["id"])] == ["24"]
        assert [one["id"] for one in (await http.get("/v1/jobs")).json()["data"]] == [job["id"]]


async def test_jobs_run_as_batch_and_say_how_long_they_waited_only_for_themselves(valkey):
    policy = ScriptedPolicy(SCRIPT, gate=asyncio.Event())
    one = gateway(valkey, policy=policy, settings={"max_sequences_in_flight": 8, "job_lines_at_once": 4})
    async with clients(one) as http:
        job = await submitted(http, file(12, n=3, deadline_seconds=30))
        await eventually(lambda: policy.running >= 6)
        assert policy.running == 6  # three quarters of eight, whoever else is there
        urgent = {"problem": PROBLEM, "n": 2, "priority": "interactive"}
        asked, asking = time.monotonic(), asyncio.create_task(http.post("/v1/solve", json=urgent))
        await eventually(lambda: policy.running == 8)
        waited = time.monotonic() - asked
        policy.gate.set()
        assert (await asking).json()["timings"]["queue_seconds"] <= waited
        assert (await ended(http, job))["counts"]["succeeded"] == 12


# ----------------------------------------------------------------------------------------------------- what is refused


BAD_LINES = [
    (b"", "body", "empty"),
    (b"\n", "body", "empty"),
    (file(2) + b"\n" + file(1), "3", "line 3: is empty"),
    (file(2) + b"{oops\n", "3.body", "line 3: the body is not valid JSON"),
    (file(2) + b'{"problem": "x", "n": 99}\n', "3.n", "line 3: n: Input should be less than"),
    (file(2) + b'{"problem": " "}\n', "3.problem", "line 3: problem: is blank"),
    (file(2) + b'{"problem": "x", "m": 1}\n', "3.m", "unsupported field 'm'"),
    (file(2) + b'{"problem": "x", "stream": true}\n', "3.stream", "follow its events"),
    (file(2) + b'{"problem": "x", "priority": "interactive"}\n', "3.priority", "always batch"),
    (file(2) + b'{"problem": "x", "n": 17}\n', "3.n", "at most 16 candidates"),
    (file(2) + b'{"problem": "x", "deadline_seconds": 601}\n', "3.deadline_seconds", "at most 600"),
    (file(2) + b'"x"\n', "3.body", "must be a JSON object"),
    (b'{"problem": "\xff"}\n', "1.body", "not valid UTF-8"),
]


async def test_a_bad_line_is_named_and_nothing_is_accepted(valkey):
    async with clients(gateway(valkey, settings={"max_sequences_in_flight": 16})) as http:
        for content, param, says in BAD_LINES:
            answer = await http.post("/v1/jobs", content=content, headers=NDJSON)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, param) and says in error["message"]
        assert (await http.get("/v1/jobs")).json()["data"] == []
    assert valkey.ask("KEYS acemath:job*") == b"*0\r\n"


async def test_files_and_bodies_have_a_largest_size(valkey):
    async with clients(gateway(valkey, settings={"job_max_lines": 3, "max_body_bytes": 2000})) as http:
        for content, says in ((file(4), "at most 3"), (b"x" * 3000, "2000 bytes")):
            answer = await http.post("/v1/jobs", content=content, headers=NDJSON)
            assert answer.status_code == 413 and says in answer.json()["error"]["message"]
        plain = await http.post("/v1/jobs", content=file(1), headers={"content-type": "text/plain"})
        assert plain.status_code == 400 and plain.json()["error"]["param"] == "content-type"


async def test_a_full_queue_says_so_and_when_to_come_back(valkey):
    async with clients(gateway(valkey, settings={"job_max_queued_lines": 5, "job_lines_at_once": 0})) as http:
        await submitted(http, file(3))
        answer = await http.post("/v1/jobs", content=file(3), headers=NDJSON)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "jobs_full"
        assert int(answer.headers["retry-after"]) > 0


async def test_without_redis_there_are_no_jobs_and_everything_else_goes_on():
    async with clients(GatewayOnDoubles()) as http:
        for method, path in (("POST", ""), ("GET", ""), ("GET", "/job_" + "0" * 32), ("DELETE", "/job_" + "0" * 32)):
            answer = await http.request(method, f"/v1/jobs{path}", content=file(1), headers=NDJSON)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "jobs_unavailable"
            assert answer.headers["retry-after"]
        for path in ("results", "events"):
            answer = await http.get(f"/v1/jobs/job_{'0' * 32}/{path}")
            assert answer.status_code == 503, answer.text
        assert (await http.post("/v1/solve", json={"problem": PROBLEM})).status_code == 200


async def test_another_keys_job_is_no_job(valkey, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("mine\n")
    keys.chmod(0o600)
    one = gateway(valkey, settings={"api_keys_file": keys}, admin_key="a" * 40)
    async with clients(one) as http:
        mine, admin = ({"authorization": f"Bearer {key}"} for key in ("mine", "a" * 40))
        made = (await http.post("/admin/v1/keys", json={"name": "other", "scopes": ["jobs"]}, headers=admin)).json()
        solver = (await http.post("/admin/v1/keys", json={"name": "solver", "scopes": ["solve"]}, headers=admin)).json()
        other, unscoped = ({"authorization": f"Bearer {key['key']}"} for key in (made, solver))
        job = await submitted(http, file(1), **mine)
        for path in ("", "/results", "/events"):
            assert (await http.get(f"/v1/jobs/{job}{path}", headers=other)).status_code == 404
        assert (await http.delete(f"/v1/jobs/{job}", headers=other)).status_code == 404
        assert (await http.get("/v1/jobs", headers=other)).json()["data"] == []
        assert (await http.get(f"/v1/jobs/{job}", headers=mine)).status_code == 200
        assert (await http.get("/v1/jobs", headers=unscoped)).status_code == 403
        assert (await http.get("/v1/jobs")).status_code == 401


async def test_the_same_idempotency_key_is_the_same_job(valkey):
    async with clients(gateway(valkey, "a"), gateway(valkey, "b")) as (a, b):
        first = await a.post("/v1/jobs", content=file(2), headers=NDJSON | {"idempotency-key": "k"})
        again = await b.post("/v1/jobs", content=file(2), headers=NDJSON | {"idempotency-key": "k"})
        assert first.json()["id"] == again.json()["id"] and again.status_code == 202
        assert again.headers["idempotent-replayed"] == "true" and "idempotent-replayed" not in first.headers
        other = await b.post("/v1/jobs", content=file(3), headers=NDJSON | {"idempotency-key": "k"})
        assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_conflict"


# ------------------------------------------------------------------------------------------------- events, cancelling


async def events_of(
    http: httpx.AsyncClient, job: str, last: str | None = None, heard: Callable[[], None] = lambda: None
) -> list[tuple[int, str, dict]]:
    """All events of a job; `heard` is called at each."""
    seen, fields = [], {}
    headers = {"last-event-id": last} if last else {}
    async with http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line and name:
                fields[name] = value
            elif fields:
                seen.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
                heard()
                fields = {}
    return seen


async def test_events_tell_each_finished_line_once_also_after_a_break(valkey):
    policy = ScriptedPolicy(SCRIPT, gate=asyncio.Event())  # nothing ends before it is listened for
    async with clients(gateway(valkey, policy=policy, settings=PATIENT)) as http:
        job = await submitted(http, file(20))
        seen = await events_of(http, job, heard=policy.gate.set)
        finished = [one["line"] for _, name, data in seen if name == "progress" for one in data["finished"]]
        assert sorted(finished) == list(range(1, 21)) and len(seen) > 2
        assert seen[-1][1] == "end" and seen[-1][2]["state"] == "completed" and seen[-1][0] == 20
        again = await events_of(http, job, last="7")
        assert [one["line"] for _, _, data in again[:-1] for one in data["finished"]] == finished[7:]
        assert [name for _, name, _ in await events_of(http, job, last="20")] == ["progress", "end"]
        bad = await http.get(f"/v1/jobs/{job}/events", headers={"last-event-id": "x"})
        assert bad.status_code == 400 and "last-event-id" in bad.json()["error"]["param"]


async def test_results_can_be_read_while_lines_run_and_have_no_gaps(valkey):
    policy = ScriptedPolicy(SCRIPT, token_seconds=0.01)
    async with clients(gateway(valkey, policy=policy, settings=PATIENT | {"job_lines_at_once": 3})) as http:
        job = await submitted(http, file(20))
        read: list[int] = []
        while len(read) < 20:
            read += [row["line"] for row in await rows_of(http, job, offset=len(read), limit=7)]
            await asyncio.sleep(0.05)
        assert read == list(range(1, 21))


async def test_a_cancelled_job_stops_what_runs_and_never_runs_the_rest(valkey):
    policies = [ScriptedPolicy(SCRIPT, hang_after=2), ScriptedPolicy(SCRIPT)]
    beats = {"job_idle_seconds": 6.0}  # often enough to hear of the end soon, and not so that a stall costs a line
    settings = beats, beats | {"job_lines_at_once": 0}
    gateways = [gateway(valkey, n, policy=p, settings=s) for n, p, s in zip("ab", policies, settings, strict=True)]
    async with clients(*gateways) as (a, b):
        job = await submitted(a, file(10))
        await eventually(lambda: policies[0].running == 12)
        assert (await a.get(f"/v1/jobs/{job}")).json()["counts"] == {
            "total": 10, "queued": 6, "running": 4, "succeeded": 0, "failed": 0, "cancelled": 0
        }  # fmt: skip
        gone = (await b.delete(f"/v1/jobs/{job}")).json()  # at a gateway that runs none of it
        assert gone["state"] == "cancelled" and gone["counts"]["cancelled"] == 10
        await eventually(lambda: policies[0].running == 0)
        assert policies[0].aborted == 4 and len(policies[0].calls) == 4
        assert {row["state"] for row in await rows_of(b, job)} == {"cancelled"}
        await eventually(lambda: gateways[0].limit.held == 0)
        assert (await b.delete(f"/v1/jobs/{job}")).json()["state"] == "cancelled"


# ---------------------------------------------------------------------------------------------------- lines that fail


async def test_a_line_that_cannot_be_solved_fails_alone(valkey):
    one = gateway(valkey)
    one.policy.error = InvalidRequest("too long", code=ErrorCode.CONTEXT_LENGTH_EXCEEDED, param="messages")
    async with clients(one) as http:
        job = await ended(http, await submitted(http, file(2)))
        assert job["state"] == "failed" and job["counts"]["failed"] == 2
        row = (await rows_of(http, job["id"]))[0]
        assert (row["state"], row["runs"], row["error"]["code"]) == ("failed", 1, "context_length_exceeded")


async def test_a_line_is_worked_on_three_times_when_we_fail_and_then_says_why(valkey, monkeypatch):
    monkeypatch.setattr(worker, "_LOOK_SECONDS", 0.02)
    one = gateway(valkey)
    one.policy.error = Unavailable("broken", code=ErrorCode.POLICY_UNAVAILABLE)
    async with clients(one) as http:
        job = await ended(http, await submitted(http, file(1)))
        row = (await rows_of(http, job["id"]))[0]
        assert (row["runs"], row["error"]["code"], len(one.policy.calls)) == (3, "policy_unavailable", 3)
        one.policy.error, one.policy.calls = Unavailable("once", code=ErrorCode.POLICY_UNAVAILABLE), []
        second = await submitted(http, file(1))
        await eventually(lambda: len(one.policy.calls) == 1)
        one.policy.error = None
        assert (await ended(http, second))["state"] == "completed"
        assert (await rows_of(http, second))[0]["runs"] == 2


async def test_without_a_release_lines_wait_and_no_run_is_counted(valkey, monkeypatch):
    monkeypatch.setattr(worker, "_LOOK_SECONDS", 0.02)
    one, looks = gateway(valkey, serving=False), []
    ready = one._readiness
    one._readiness = lambda: looks.append(1) or ready()
    async with clients(one) as http:
        job = await submitted(http, file(3))
        looks.clear()
        await eventually(lambda: len(looks) > 5)
        assert (await http.get(f"/v1/jobs/{job}")).json()["state"] == "queued"
        one.serving = True
        assert (await ended(http, job))["state"] == "completed"
        assert {row["runs"] for row in await rows_of(http, job)} == {1}


async def test_a_full_door_costs_a_line_no_run(valkey):
    policy = ScriptedPolicy(SCRIPT, gate=asyncio.Event())
    settings = {"max_sequences_in_flight": 3, "max_queue_seconds": 0.5, "job_lines_at_once": 4, "job_idle_seconds": 4.0}
    async with clients(gateway(valkey, policy=policy, settings=settings)) as http:
        job = await submitted(http, file(6, n=3))

        async def postponed() -> bool:
            return 'job_lines_total{outcome="postponed"} 0.0' not in (await http.get("/metrics")).text

        await eventually_true(postponed)
        policy.gate.set()
        assert (await ended(http, job))["counts"]["succeeded"] == 6
        assert {row["runs"] for row in await rows_of(http, job)} == {1}
