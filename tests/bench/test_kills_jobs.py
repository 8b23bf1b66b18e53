"""Every line of a job is accounted for: one without a result, or with two, is lost and said so."""

from __future__ import annotations

import json

import httpx
import pytest

from bench.kills import jobs
from bench.kills.jobs import Jobs, submitting

URLS = ("http://one", "http://two")


def line(number: int, **more: object) -> dict[str, object]:
    return {"line": number, "state": "succeeded", "runs": 1} | more


ALL = [line(number) for number in range(1, jobs.LINES + 1)]


class Gateway:
    """Takes a job, breaks every other connection, and gives these results."""

    def __init__(self, results: list[dict[str, object]], states: list[str]) -> None:
        self.results, self.states, self.asked, self.keys = results, states, 0, set[str]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.asked % 2:
            raise httpx.ConnectError("killed")
        if request.method == "POST":
            self.keys.add(request.headers["idempotency-key"])
            assert len(request.content.splitlines()) == jobs.LINES
            return httpx.Response(202, json={"id": "job_1"})
        if request.url.path.endswith("/results"):
            return httpx.Response(200, text="".join(json.dumps(result) + "\n" for result in self.results))
        return httpx.Response(200, json={"state": self.states.pop(0) if len(self.states) > 1 else self.states[0]})


async def submitted(gateway: Gateway) -> Jobs:
    async with httpx.AsyncClient(transport=httpx.MockTransport(gateway)) as client:
        return await submitting(client, URLS, every=1.0, seconds=0.5, problems=["What is 7 + 5?"], seed=0)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "ASK_SECONDS", 0.0)


async def test_a_job_is_followed_to_its_end_through_broken_connections() -> None:
    found = await submitted(Gateway(ALL, ["queued", "running", "completed"]))
    assert found.made == 1 and not found.lost
    assert dict(found.lines) == {"succeeded": jobs.LINES} and dict(found.runs) == {1: jobs.LINES}


@pytest.mark.parametrize("results", [ALL[1:], [*ALL, line(1)], [ALL[0], *ALL]], ids=["one less", "one more", "twice"])
async def test_a_line_without_a_result_or_with_two_is_lost(results: list[dict[str, object]]) -> None:
    found = await submitted(Gateway(results, ["completed"]))
    assert len(found.lost) == 1 and "lines" in found.lost[0]


async def test_a_line_that_failed_is_no_loss_and_its_code_is_counted() -> None:
    failed = line(1, state="failed", runs=3, error={"code": "worker_lost"})
    found = await submitted(Gateway([failed, *ALL[1:]], ["completed"]))
    assert not found.lost and dict(found.codes) == {"worker_lost": 1} and found.runs[3] == 1


async def test_a_job_that_never_ends_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LOST_SECONDS", 0.2)
    found = await submitted(Gateway(ALL, ["running"]))
    assert found.lost == ["job 0: no end after 0.2 s"]


async def test_a_job_that_is_refused_as_a_mistake_ends_the_measurement() -> None:
    def refusing(_: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"code": "invalid_request"}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(refusing)) as client:
        with pytest.raises(ExceptionGroup):
            await submitting(client, URLS, every=1.0, seconds=0.5, problems=["x"], seed=0)
