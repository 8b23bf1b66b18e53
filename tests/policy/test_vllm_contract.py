"""What the gateway and the agent rely on in a vLLM server: on the double always, on real vLLM under `stack`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback_ports import free_run
from policy.conftest import FAKE_VLLM, KEY

from acemath_core.processes import shim
from acemath_core.processes.vllm import environment
from acemath_policy.settings import PolicySettings, inherited_environment
from acemath_policy.vllm_server import VllmClient, VllmFailure, command_line

pytestmark = pytest.mark.timeout(900)  # the first test waits for real vLLM, on a machine that may be busy
NAME = "pol@s3-0123456789ab"
EOS = 4
SHIM = (sys.executable, "-I", "-S", shim.__file__, "--term-seconds", "15", "--")
PROMPT = [1, 70, 71, 72]
CHUNK = {"id", "object", "created", "model", "choices"}
CHOICE = {"index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"}


@dataclass(frozen=True)
class Server:
    url: str
    http: httpx.Client

    def client(self, name: str = NAME) -> VllmClient:
        return VllmClient(self.url, name, KEY)

    def events(self, **body: Any) -> list[dict[str, Any]]:
        """The events of a streaming call; checks what frames them."""
        whole = {"model": NAME, "prompt": PROMPT, "temperature": 1.0, "seed": 7, "return_token_ids": True, **body}
        with self.http.stream("POST", "/v1/completions", json={**whole, "stream": True}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def metric(self, name: str) -> float:
        text = self.http.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


@pytest.fixture(scope="module", params=["double", pytest.param("vllm", marks=[pytest.mark.stack, pytest.mark.slow])])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The double or real vLLM, started with the very command line and environment of the agent."""
    folder = tmp_path_factory.mktemp("contract")
    model = folder / "model"
    subprocess.run([sys.executable, Path(__file__).with_name("make_tiny_llama.py"), model], check=True, timeout=120)
    double = {"vllm_command": (sys.executable, str(FAKE_VLLM))} if request.param == "double" else {}
    settings = PolicySettings(
        registry_root=folder,
        cache_dir=folder / "cache",
        enforce_eager=True,
        cpu_kvcache_space=1,
        shutdown_timeout_seconds=2,
        **double,
    )
    port = free_run()
    log, url = folder / "log", f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {KEY.get_secret_value()}"}
    (folder / "control").write_text('{"token_seconds": 0.005}')  # a small model's pace
    with log.open("wb") as output, httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        process = subprocess.Popen(
            # Under the shim, so that nothing is left even if the test run is killed.
            [*SHIM, *command_line(settings, model=model, name=NAME, port=port)],
            env=environment(settings, inherited_environment(), KEY) | {"FAKE_VLLM_CONTROL": str(folder / "control")},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
        try:
            _wait(lambda: _healthy(http), 600, lambda: f"{process.poll()}: {log.read_text()[-2000:]}")
            yield Server(url, http)
        finally:
            process.terminate()
            process.communicate(timeout=30)
    text = log.read_text()
    assert "internal key" not in text
    assert "a secret problem" not in text


def _healthy(http: httpx.Client) -> bool:
    try:
        return http.get("/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def _wait(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what()
        time.sleep(0.1)


def test_models_names_the_version_and_its_length_and_asks_for_the_key(server: Server) -> None:
    card = server.http.get("/v1/models").json()["data"][0]
    assert (card["id"], card["max_model_len"]) == (NAME, 512)
    refused = httpx.get(f"{server.url}/v1/models")
    assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})


def test_the_stream_of_n_candidates(server: Server) -> None:
    events = server.events(
        n=3, max_tokens=12, stream_interval=5, stream_options={"include_usage": True}, ignore_eos=True
    )
    *chunks, last = events
    assert all(set(chunk) >= CHUNK and set(chunk["choices"][0]) == CHOICE for chunk in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert {chunk["model"] for chunk in events} == {NAME}
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["prompt_token_ids"] == PROMPT
        assert all(choice["prompt_token_ids"] is None for choice in own[1:])
        assert [len(choice["token_ids"]) for choice in own] == [1, 5, 5, 1]
        assert [choice["finish_reason"] for choice in own] == [None, None, None, "length"]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 36, "total_tokens": 40}
    assert last["system_fingerprint"] == NAME


def test_without_usage_the_last_event_of_a_candidate_carries_the_version(server: Server) -> None:
    *others, last = server.events(max_tokens=3)
    assert last["system_fingerprint"] == NAME
    assert all("system_fingerprint" not in event for event in others)


def test_a_candidate_that_ends_its_turn_stops(server: Server) -> None:
    event = server.events(max_tokens=5, allowed_token_ids=[EOS])[-1]["choices"][0]
    assert (event["finish_reason"], event["stop_reason"], event["token_ids"], event["text"]) == (
        "stop",
        None,
        [EOS],
        "",
    )


def test_candidate_i_of_n_is_sampled_with_seed_plus_i(server: Server) -> None:
    together = server.events(n=3, seed=40, max_tokens=4, ignore_eos=True)
    for index in range(3):
        alone = server.events(seed=40 + index, max_tokens=4, ignore_eos=True)
        assert _ids(alone, 0) == _ids(together, index)


def _ids(events: list[dict[str, Any]], index: int) -> list[int]:
    choices = (choice for event in events for choice in event["choices"])
    return [i for choice in choices if choice["index"] == index for i in choice["token_ids"]]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other@s1-000000000000"}, 404, "model"),
        ({"prompt": [70] * 600}, 400, "input_tokens"),
        ({"max_tokens": 513}, 400, "max_tokens"),
        ({"n": 2, "temperature": 0}, 400, None),
        ({"n": 0}, 400, None),
        ({"prompt": []}, 400, None),
    ],
)
def test_refusals(server: Server, body: dict[str, Any], status: int, param: str | None) -> None:
    whole = {"model": NAME, "prompt": PROMPT, "max_tokens": 2, "stream": True, **body}
    response = server.http.post("/v1/completions", json=whole)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, status)


@pytest.mark.parametrize("path", ["/invocations", "/tokenize", "/v1/chat/completions", "/docs", "/pause", "/load"])
def test_nothing_else_is_served(server: Server, path: str) -> None:
    body = {"model": NAME, "prompt": "1", "messages": [{"role": "user", "content": "1"}]}
    assert httpx.post(f"{server.url}{path}", json=body, timeout=30).status_code == 404


def test_the_request_id_is_the_callers(server: Server) -> None:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 1}
    answer = server.http.post("/v1/completions", json=body, headers={"x-request-id": "r-1"}).json()
    assert answer["id"] == "cmpl-r-1"


def test_a_client_that_goes_away_ends_all_its_candidates(server: Server) -> None:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 480, "n": 16, "stream": True, "seed": 1, "ignore_eos": True}
    before = server.metric("vllm:generation_tokens_total")
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    _wait(lambda: server.metric("vllm:num_requests_running") == 0, 10, lambda: "still running")
    assert server.metric("vllm:generation_tokens_total") - before < 16 * 480


async def test_the_agents_client_on_it(server: Server) -> None:
    client = server.client()
    assert await client.healthy(5) is True
    before = await client.load(5)
    assert before.idle
    assert await client.generate((1, 0, 1, 0), 8, 30) >= 1
    logprobs = await client.prompt_logprobs((1, 70, 71, 72), 30)
    assert len(logprobs) == 3
    (cache,) = await client.caches(5)  # one engine
    assert cache >= 512
    assert all(value < 0 for value in logprobs)
    until = time.monotonic() + 12  # vLLM's counters follow its steps
    while (await client.load(5)).generated == before.generated:
        assert time.monotonic() < until
    await client.aclose()
    stranger = server.client("other@s1-000000000000")
    with pytest.raises(VllmFailure, match="HTTP 404"):
        await stranger.generate((1,), 1, 10)
    await stranger.aclose()


def test_a_refused_requests_text_is_not_logged(server: Server) -> None:
    """The server fixture looks into the log at the end."""
    for body in ({"prompt": "a secret problem", "n": 0}, {"prompt": "a secret problem", "max_tokens": -1}):
        assert server.http.post("/v1/completions", json={"model": NAME, **body}).status_code == 400


def test_seeded_prompts_that_overflow_one_batch_together_are_all_answered(server: Server) -> None:
    """vLLM's CPU worker died of a seeded prompt prefilled in two parts."""

    def ask(seed: int) -> int:
        body = {"model": NAME, "prompt": [5 + seed] * 400, "seed": seed, "max_tokens": 2, "temperature": 1.0}
        return server.http.post("/v1/completions", json=body).status_code

    with ThreadPoolExecutor(24) as callers:
        assert set(callers.map(ask, range(24))) == {200}
    assert server.http.get("/health").is_success


def test_nothing_secret_on_the_command_line(tmp_path: Path) -> None:
    settings = PolicySettings(registry_root=tmp_path, cache_dir=tmp_path)
    command = command_line(settings, model=tmp_path, name=NAME, port=1)
    assert KEY.get_secret_value() not in " ".join(command)
    made = environment(settings, {"ACEMATH_X": "1", **os.environ}, KEY)
    assert made["VLLM_API_KEY"] == KEY.get_secret_value()
