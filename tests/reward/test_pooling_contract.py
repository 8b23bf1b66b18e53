"""What the reward service relies on in a vLLM pooling server: on the double always, on real vLLM under `stack`.

The server is started by the service, as it always is, and asked both through it and behind its back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from reward.live_client import MESSAGES, Live
from reward.pooled_world import KEY, SHAPE, give_two_layers, pooled_settings
from reward.publishing import promote, publish_reward
from reward.serving import serve, wait_until_ready
from reward.tiny import MAX_TOKENS, VOCABULARY, write_checkpoint

from acemath_core.processes.vllm import COMMAND
from acemath_registry import Registry
from acemath_reward.app import create_app
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.pooled.client import PoolingClient, Question, WrongAnswer
from acemath_reward.pooled.model import PooledLoader
from acemath_reward.ports import PromptGroup, TokenIds
from acemath_reward.settings import inherited_environment
from doubles.fake_vllm_server import pooled_score

pytestmark = pytest.mark.timeout(900)  # the first test waits for real vLLM, on a machine that may be busy
CANDIDATES = ["3 + 4 = 7. \\boxed{7}", "3 * 4 = 12. \\boxed{12}", "\\boxed{7}"]
SEQUENCES: list[TokenIds] = [(5,), (1, 70, 71, 72), tuple(i * 7 % VOCABULARY for i in range(MAX_TOKENS))]
HEADERS = {"Authorization": f"Bearer {KEY.get_secret_value()}"}


@dataclass(frozen=True)
class Running:
    """The service at `http`, its server at `port`, and what scores must be within `tolerance`."""

    url: str
    http: httpx.Client
    version: str
    port: int
    question: Question
    expected: Callable[[Sequence[TokenIds]], list[float]]
    tolerance: float

    @property
    def client(self) -> PoolingClient:
        return self.client_of(self.version)

    def client_of(self, version: str) -> PoolingClient:
        return PoolingClient("127.0.0.1", self.port, version, KEY, self.question)

    def near(self, values: list[float]) -> Any:
        return pytest.approx(values, abs=self.tolerance, rel=0)


def _legs() -> Iterator[Any]:
    for head in ("one layer", "two layers"):
        yield pytest.param(("double", head), id=f"double, {head}")
        yield pytest.param(("vllm", head), id=f"vllm, {head}", marks=[pytest.mark.stack, pytest.mark.slow])


@pytest.fixture(scope="module", params=_legs())
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, (server, head) = tmp_path_factory.mktemp("pooling"), request.param
    real, question = server == "vllm", Question.SEQUENCE if head == "one layer" else Question.TOKENS
    kind = "llama" if head == "one layer" else "qwen2"
    checkpoint = write_checkpoint(folder / "export", kind, **SHAPE)
    if head == "two layers":
        give_two_layers(checkpoint)
    registry = Registry(folder / "registry")
    version = publish_reward(registry, checkpoint)
    promote(registry, version, folder)
    of_vllm = {"vllm_command": COMMAND, "start_timeout_seconds": 600, "stuck_seconds": 60} if real else {}
    settings = pooled_settings(
        folder, dtype="float32", enforce_eager=True, cpu_kvcache_space=1, probe_seconds=5, **of_vllm
    )
    app = create_app(settings, PooledLoader(settings, inherited_environment(), KEY), KEY)
    with serve(app) as url, httpx.Client(base_url=url, headers=HEADERS, timeout=60, verify=False) as http:
        wait_until_ready(url, 600 if real else 60)
        expected = torch_engine(checkpoint) if real else lambda given: [pooled_score(list(ids)) for ids in given]
        tolerance = 2e-4 if real else 0.0
        yield Running(url, http, str(version), settings.first_vllm_port, question, expected, tolerance)


def torch_engine(checkpoint: Path) -> Callable[[Sequence[TokenIds]], list[float]]:
    engine = load_engine(checkpoint, place("cpu", "float32", threads=1))
    return lambda given: engine.score([PromptGroup((), tuple(given))])[0]


def test_ids_are_scored_as_they_are_in_order_raw_and_in_float32(running: Running) -> None:
    found = running.client.score(SEQUENCES, 60)
    assert found == running.near(running.expected(SEQUENCES))
    assert min(found) < 0.0 or max(found) > 1.0, "an activation would give numbers from 0 to 1"
    assert found == [struct.unpack("f", struct.pack("f", value))[0] for value in found]


def test_the_longest_sequence_is_scored_and_a_longer_one_is_refused(running: Running) -> None:
    longest = SEQUENCES[-1]
    assert len(running.client.score([longest], 60)) == 1
    with pytest.raises(WrongAnswer, match="HTTP 400"):
        running.client.score([(*longest, 5)], 60)


def test_another_version_is_not_served(running: Running) -> None:
    with pytest.raises(WrongAnswer, match="HTTP 404"):
        running.client_of("other@s1-000000000000").score([(5,)], 60)


@pytest.mark.parametrize(
    ("path", "status"), [("/classify", 401), ("/pooling", 401), ("/v1/models", 404), ("/score", 404), ("/docs", 404)]
)
def test_nothing_else_is_served_and_nothing_without_the_key(running: Running, path: str, status: int) -> None:
    body = {"model": running.version, "input": [[5]], "use_activation": False}
    assert httpx.post(f"http://127.0.0.1:{running.port}{path}", json=body, timeout=30).status_code == status


def test_it_is_healthy_and_nobody_is_where_it_is_not(running: Running) -> None:
    assert running.client.healthy(30) is True
    assert PoolingClient("127.0.0.1", running.port + 1, running.version, KEY).healthy(30) is None


def test_the_service_renders_and_counts_as_with_its_own_engine(running: Running) -> None:
    body = {"messages": MESSAGES, "candidates": [*CANDIDATES, CANDIDATES[0]]}
    answer = running.http.post("/v1/score", json=body).json()
    scores = [item["score"] for item in answer["data"]]
    assert answer["model"] == running.version and [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    assert scores[3] == scores[0], "a duplicate is scored once"
    alone = [running.http.post("/v1/score", json=body | {"candidates": [text]}).json() for text in CANDIDATES]
    assert scores[:3] == running.near([one["data"][0]["score"] for one in alone])


def test_a_live_candidate_is_scored_whole_at_its_end(running: Running) -> None:
    body = {"messages": MESSAGES, "candidates": CANDIDATES}
    whole = [item["score"] for item in running.http.post("/v1/score", json=body).json()["data"]]
    with Live(running.url, key=KEY.get_secret_value()) as live:
        for index, text in enumerate(CANDIDATES):
            live.write(index, [text[:5], text[5:]])
        found = live.scores(len(CANDIDATES))
    assert [found[index]["score"] for index in range(len(CANDIDATES))] == running.near(whole)


def test_it_says_what_computes_and_what_is_not_promised(running: Running) -> None:
    details = running.http.get("/readyz?verbose").json()["details"]["versions"][running.version]
    assert (details["engine"], details["tensor_parallel_size"]) == ("vllm", 1)
    assert (details["batch_invariance"], details["batch_invariant"]) == ("not promised by this engine", None)
