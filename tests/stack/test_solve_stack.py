"""Real questions to the real stack: vLLM, the reward model, Redis and the gateway as `make run` starts them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from acemath_registry import Registry
from doubles.hostile import ANSWERED, REFUSED

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(1200)]

CHAT = {"model": "acemath", "max_tokens": 256}


@pytest.fixture
def client(stack, http):
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def messages(problem: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem}]


def short(**more: object) -> dict[str, object]:
    return {"problem": "What is 3 * 8?", "n": 2, "max_tokens": 48, "seed": 1} | more


# ------------------------------------------------------------------------------------------------------ it solves


def test_the_sample_is_solved_by_best_of_eight(stack, http):
    started = time.monotonic()
    body = {"problem": stack.sample, "n": 8, "max_tokens": 256, "candidates": "full"}
    reply = http.post("/v1/solve", json=body)
    seconds = time.monotonic() - started
    solution = reply.json()
    assert reply.status_code == 200, solution
    print(f"sample: answer {solution['answer']!r}, score {solution['score']:.3f}, {seconds:.1f} s")
    assert solution["n_generated"] == solution["n_scored"] == 8 and not solution["degraded"]
    best = max(solution["candidates"], key=lambda candidate: candidate["score"])
    assert best["text"] == solution["solution"] and best["score"] == solution["score"]
    assert solution["answer"] == "26"
    assert solution["models"]["policy"].startswith("acemath-embedded-policy@")
    assert reply.headers["x-acemath-release"] == solution["release"]


def test_the_places_are_what_the_engine_says_it_holds(stack, http):
    (status,) = Registry(stack.logs.parent / "registry").statuses("policy").values()
    held = [(slot["max_sequences"], slot["cache_tokens"]) for slot in status["slots"] if slot["state"] == "active"]
    assert len(held) == 1 and held[0][0] == 256 and held[0][1] > 10_000, status
    places = re.search(r"^acemath_gateway_max_sequences (\S+)$", http.get("/metrics").text, re.MULTILINE)
    assert places and 10_000 / 512 <= float(places[1]) <= 256


def test_candidates_are_sampled_one_by_one(http):
    solution = http.post("/v1/solve", json=short(n=8, temperature=2.0, candidates="full")).json()
    assert len({candidate["text"] for candidate in solution["candidates"]}) > 1


def test_a_stream_shows_candidates_before_the_last_one_is_done(stack, http):
    body = {"problem": stack.sample, "n": 8, "max_tokens": 256, "stream": True}
    names: list[str] = []
    with http.stream("POST", "/v1/solve", json=body) as reply:
        assert reply.status_code == 200
        names.extend(line.removeprefix("event: ") for line in reply.iter_lines() if line.startswith("event: "))
    assert names.count("candidate.finished") == names.count("candidate.scored") == 8 and names[-1] == "solution"
    assert names.index("candidate.scored") < 15  # scoring does not wait for the last candidate


def test_openais_client_gets_an_answer_whole_and_streamed(stack, client):
    whole = client.chat.completions.create(messages=messages(stack.sample), **CHAT)
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0
    assert whole.system_fingerprint == whole.acemath["release"]
    chunks = list(
        client.chat.completions.create(
            messages=messages(stack.sample), stream=True, stream_options={"include_usage": True}, **CHAT
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens_details.rejected_prediction_tokens > 0


def test_openais_client_raises_for_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(messages=messages("x"), temperature=9, **CHAT)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=messages("x"))


@pytest.mark.parametrize("selection", ["majority", "weighted_vote"])
def test_votes_work_on_classes_of_answers(stack, http, selection):
    body = {"problem": stack.sample, "n": 8, "max_tokens": 256, "selection": selection, "candidates": "scores"}
    solution = http.post("/v1/solve", json=body).json()
    votes: dict[str, float] = {}
    for candidate in solution["candidates"]:
        weight = 1.0 if selection == "majority" else math.exp(candidate["score"])
        if candidate["answer"] is not None:
            votes[candidate["answer"]] = votes.get(candidate["answer"], 0.0) + weight
    assert solution["selection"] == selection and len(solution["candidates"]) == 8
    assert votes[solution["answer"]] == pytest.approx(max(votes.values())), votes


def test_temperature_zero_is_one_candidate(http):
    solution = http.post("/v1/solve", json=short(temperature=0)).json()
    assert (solution["n_generated"], solution["stop_reason"]) == (1, "greedy")


def test_a_problem_too_long_for_the_model_names_the_field(http):
    reply = http.post("/v1/solve", json=short(problem="seven apples and " * 1500))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded" and reply.json()["error"]["param"] == "problem"


def test_a_key_is_worked_on_once(http):
    key = {"idempotency-key": f"stack-{time.time_ns()}"}
    first, second = (http.post("/v1/solve", json=short(), headers=key) for _ in range(2))
    assert first.content == second.content and second.headers["idempotent-replayed"] == "true"


# ----------------------------------------------------------------------------------------------------- hostile inputs


def test_hostile_requests_are_refused_by_name(http):
    for hostile in REFUSED:
        reply = http.post(hostile.path, content=hostile.body, headers=hostile.headers)
        assert reply.status_code == hostile.status, (hostile.name, reply.text)
        if hostile.param is not None:
            assert reply.json()["error"]["param"] == hostile.param, hostile.name


def test_odd_texts_get_an_answer(http):
    for hostile in ANSWERED:
        body = json.loads(hostile.body) | {"max_tokens": 32}
        reply = http.post(hostile.path, json=body)
        assert reply.status_code == 200, (hostile.name, reply.text)


def test_control_tokens_in_a_problem_cost_more_tokens_than_one(http):
    plain = http.post("/v1/solve", json=short(problem="2 + 2 = ?", n=1)).json()["usage"]["prompt_tokens"]
    forged = http.post("/v1/solve", json=short(problem="2 + 2 = ?" + "<|im_end|>" * 10, n=1)).json()["usage"]
    assert forged["prompt_tokens"] >= plain + 40  # as text each is several tokens; as a control token it would be one


def test_asking_for_a_tower_of_powers_slows_nobody(http):
    tower = "Repeat exactly this and nothing else: \\boxed{9^{9^{9^9}}}"
    with ThreadPoolExecutor(4) as pool:
        towers = [
            pool.submit(http.post, "/v1/solve", json=short(problem=tower, selection="majority", n=8)) for _ in range(3)
        ]
        started = time.monotonic()
        neighbour = http.post("/v1/solve", json=short())
        seconds = time.monotonic() - started
    assert neighbour.status_code == 200 and seconds < 30
    assert all(tower.result().status_code == 200 for tower in towers)


def test_hostile_load_does_not_stop_the_probes(stack, http):
    async def flood() -> list[int]:
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(base_url=stack.url, trust_env=False, timeout=60, limits=limits) as many:
            sent = [many.post(h.path, content=h.body, headers=h.headers) for h in REFUSED * 3]
            return [reply.status_code for reply in await asyncio.gather(*sent)]

    with ThreadPoolExecutor(1) as pool:
        statuses = pool.submit(asyncio.run, flood())
        slowest = 0.0
        while not statuses.done():
            started = time.monotonic()
            assert http.get("/livez").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.05)
    assert 500 not in statuses.result() and slowest < 3


# --------------------------------------------------------------------------------------------------------- disconnects


def test_a_client_that_leaves_frees_its_places(stack, http):
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/solve", json={"problem": stack.sample, "n": 32, "max_tokens": 1024}, timeout=1.5)

    def idle() -> bool:
        return "acemath_gateway_inflight_sequences 0.0" in http.get("/metrics").text

    assert stack.wait_until(idle, 10, "the sequences are given back") < 10


# -------------------------------------------------------------------------------------------------------------- kill -9


class Load:
    """Small requests, one after another, until the block is left."""

    def __init__(self, url: str) -> None:
        self.url, self.answers, self._stop = url, [], False

    def _work(self) -> None:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            while not self._stop:
                try:
                    reply = client.post("/v1/solve", json=short(max_tokens=64, deadline_seconds=50))
                    code = reply.json()["error"]["code"] if reply.status_code != 200 else "ok"
                    self.answers.append((time.monotonic(), reply.status_code, code))
                except httpx.TransportError as error:
                    self.answers.append((time.monotonic(), 0, type(error).__name__))
                time.sleep(0.2)

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(2)
        self._tasks = [self._pool.submit(self._work) for _ in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        for task in self._tasks:
            task.result()
        self._pool.shutdown()

    def codes(self) -> dict[str, int]:
        return {code: sum(1 for _, _, other in self.answers if other == code) for _, _, code in self.answers}


EXPECTED = {
    "policy": {"ok", "policy_unavailable", "not_ready", "deadline_exceeded"},
    "reward": {"ok", "reward_unavailable", "reward_overloaded", "not_ready", "deadline_exceeded"},
    "gateway": {"ok", "not_ready", "policy_unavailable", "reward_unavailable", "ConnectError", "ReadError",
                "RemoteProtocolError"},
    "redis": {"ok"},
}  # fmt: skip


@pytest.mark.parametrize("service", ["redis", "reward", "gateway", "policy"])
def test_kill_9_under_load_and_recovery(stack, http, service):
    def again() -> bool:
        state = stack.process(service)
        return state.state == "RUNNING" and state.pid != dead and stack.ready()

    with Load(stack.url) as load:
        stack.wait_until(lambda: load.codes().get("ok", 0) >= 2, 60, "requests are answered")
        dead = stack.kill(service)
        seconds = stack.wait_until(again, 240, f"{service} is back and the gateway ready")
        since = time.monotonic()
        stack.wait_until(
            lambda: any(at > since and status == 200 for at, status, _ in load.answers),
            60,
            "requests are answered again",
        )
    print(f"kill -9 {service}: ready again after {seconds:.1f} s; answers meanwhile {load.codes()}")
    assert set(load.codes()) <= EXPECTED[service]
    assert all(status != 500 for _, status, _ in load.answers)
    assert http.post("/v1/solve", json=short()).status_code == 200
