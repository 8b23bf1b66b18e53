"""vLLM's and OpenRLHF's shapes give the numbers of `POST /v1/score`, bit for bit, on a tiny real checkpoint."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from reward.shapes import CANDIDATES, FORGED, KEY, PROBLEM, Client, rendered, rendered_prompt, serving

from acemath_core.prompts import reward_messages


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    checkpoint: Path = request.getfixturevalue(request.param)
    with serving(checkpoint, tmp_path_factory.mktemp("shapes")) as running:
        yield running


def sigmoid(value: float) -> float:
    number: float = struct.unpack("f", struct.pack("f", 1 / (1 + math.exp(-value))))[0]
    return number


def probs(answer: Any) -> list[float]:
    assert all(len(item["probs"]) == item["num_classes"] == 1 for item in answer["data"])
    return [item["probs"][0] for item in answer["data"]]


# -------------------------------------------------------------------------------------------------------- /classify


def test_classify_gives_the_raw_score_of_a_rendered_conversation(client: Client) -> None:
    texts = [rendered(candidate) for candidate in CANDIDATES]
    answer = client.ok("/classify", input=texts, use_activation=False)
    assert probs(answer) == client.scores()
    assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    assert {item["label"] for item in answer["data"]} == {"LABEL_0"}
    assert answer["object"] == "list" and answer["id"].startswith("classify-") and answer["created"] > 1_700_000_000
    assert answer["model"] == client.ok("/v1/score", problem=PROBLEM, candidates=["x"])["model"]


def test_classify_applies_the_sigmoid_unless_told_not_to(client: Client) -> None:
    expected = [sigmoid(score) for score in client.scores()]
    texts = [rendered(candidate) for candidate in CANDIDATES]
    assert probs(client.ok("/classify", input=texts)) == expected
    assert probs(client.ok("/classify", input=texts, use_activation=True)) == expected
    assert probs(client.ok("/classify", input=texts, activation=False)) == client.scores()


def test_classify_takes_one_text_ids_and_many_ids(client: Client) -> None:
    ids = [client.encoder.encode_conversation(reward_messages(PROBLEM, candidate)) for candidate in CANDIDATES]
    scores = client.scores()
    assert probs(client.ok("/classify", input=rendered(CANDIDATES[0]), use_activation=False)) == scores[:1]
    assert probs(client.ok("/classify", input=ids[1], use_activation=False)) == scores[1:2]
    assert probs(client.ok("/classify", input=ids, use_activation=False)) == scores


def test_classify_takes_messages_and_renders_them(client: Client) -> None:
    messages = reward_messages(PROBLEM, CANDIDATES[0])
    answer = client.ok("/classify", messages=messages, use_activation=False)
    assert probs(answer) == client.scores(candidates=CANDIDATES[:1])


def test_text_in_messages_cannot_forge_a_turn(client: Client) -> None:
    answer = client.ok("/classify", messages=reward_messages(FORGED, FORGED), use_activation=False)
    assert probs(answer) == client.scores(FORGED, [FORGED])
    assert probs(answer) != probs(client.ok("/classify", input=rendered(FORGED, FORGED), use_activation=False))


def test_classify_usage_counts_every_token(client: Client) -> None:
    lengths = [len(client.encoder.encode_conversation(reward_messages(PROBLEM, one))) for one in CANDIDATES]
    usage = client.ok("/classify", input=[rendered(one) for one in CANDIDATES])["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == sum(lengths)
    assert usage["completion_tokens"] == 0


def test_text_without_a_turn_is_scored_as_it_is(client: Client) -> None:
    answer = client.ok("/classify", input=["apples", "<|im_start|>"], use_activation=False)
    assert len(set(probs(answer))) == 2
    assert answer["usage"]["total_tokens"] > 1


# ------------------------------------------------------------------------------------------------- /score, /rerank


@pytest.mark.parametrize(
    ("first", "second"),
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
def test_score_takes_a_problem_and_its_candidates(client: Client, first: str, second: str) -> None:
    answer = client.ok("/score", **{first: PROBLEM, second: CANDIDATES}, use_activation=False)
    assert [item["score"] for item in answer["data"]] == client.scores()
    assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    assert {item["object"] for item in answer["data"]} == {"score"} and answer["id"].startswith("score-")


def test_score_takes_as_many_problems_as_candidates(client: Client) -> None:
    problems = [PROBLEM, "What is 2 + 2?", PROBLEM, "What is 2 + 2?"]
    answer = client.ok("/score", text_1=problems, text_2=CANDIDATES, use_activation=False)
    expected = [client.scores(problem, [one])[0] for problem, one in zip(problems, CANDIDATES, strict=True)]
    assert [item["score"] for item in answer["data"]] == expected


def test_score_applies_the_sigmoid_as_vllm_does(client: Client) -> None:
    answer = client.ok("/score", text_1=PROBLEM, text_2=CANDIDATES[0])
    assert [item["score"] for item in answer["data"]] == [sigmoid(client.scores()[0])]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_gives_the_best_first(client: Client, path: str) -> None:
    answer = client.ok(path, query=PROBLEM, documents=CANDIDATES, use_activation=False)
    scores = client.scores()
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    assert [result["index"] for result in answer["results"]] == order
    for result in answer["results"]:
        assert result["relevance_score"] == scores[result["index"]]
        assert result["document"] == {"text": CANDIDATES[result["index"]], "multi_modal": None}
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_rerank_gives_the_top_n(client: Client) -> None:
    every = client.ok("/rerank", query=PROBLEM, documents=CANDIDATES)["results"]
    assert client.ok("/rerank", query=PROBLEM, documents=CANDIDATES, top_n=2)["results"] == every[:2]
    assert client.ok("/rerank", query=PROBLEM, documents=CANDIDATES, top_n=9)["results"] == every
    assert client.ok("/rerank", query=PROBLEM, documents=CANDIDATES[0])["results"][0]["index"] == 0


def test_texts_of_pairs_cannot_forge_a_turn(client: Client) -> None:
    answer = client.ok("/score", text_1=FORGED, text_2=FORGED, use_activation=False)
    assert [item["score"] for item in answer["data"]] == client.scores(FORGED, [FORGED])


# ------------------------------------------------------------------------------------------------------ /get_reward


def test_get_reward_gives_raw_scores_as_openrlhf_reads_them(client: Client) -> None:
    queries = [rendered(candidate) for candidate in CANDIDATES]
    answer = client.ok("/get_reward", query=queries, prompts=[rendered_prompt()] * 4, labels=["7", None, 7, {"a": 7}])
    assert answer["rewards"] == answer["scores"] == client.scores()
    assert answer["extra_logs"]["reward_tokens"] == [float(count) for count in answer["extra_logs"]["reward_tokens"]]
    assert len(answer["extra_logs"]["reward_tokens"]) == 4
    assert client.ok("/get_reward", query=queries) == answer


def test_get_reward_reads_a_response_with_and_without_its_end(client: Client) -> None:
    """A policy stops at `<|im_end|>`, or at its token limit; the reward model reads a whole end of turn."""
    expected = client.scores(candidates=CANDIDATES[:1]) * 3
    whole = rendered(CANDIDATES[0])
    queries = [whole, whole.removesuffix("\n"), whole.removesuffix("<|im_end|>\n")]
    assert client.ok("/get_reward", query=queries)["rewards"] == expected
    assert client.ok("/get_reward", query=queries, prompts=[rendered_prompt()] * 3)["rewards"] == expected


def test_a_policy_cannot_write_itself_a_turn(client: Client) -> None:
    query = rendered(FORGED)
    expected = client.scores(candidates=[FORGED])
    assert client.ok("/get_reward", query=[query], prompts=[rendered_prompt()])["rewards"] == expected
    assert client.ok("/get_reward", query=[query])["rewards"] != expected, "without prompts nothing says what it wrote"


def test_a_prompt_in_another_template_is_scored_as_rendered(client: Client) -> None:
    query = "Question: 3 + 4? Answer: 7"
    plain = client.ok("/get_reward", query=[query])["rewards"]
    assert client.ok("/get_reward", query=[query], prompts=["Question: 3 + 4? Answer:"])["rewards"] == plain
    assert client.ok("/get_reward", query=[query], prompts=["something else"])["rewards"] == plain


def test_a_trainer_that_knows_only_a_url_can_show_the_key(client: Client) -> None:
    url = str(client.base_url).rstrip("/").replace("http://", f"http://trainer:{KEY}@") + "/get_reward"
    answer = httpx.post(url, json={"query": rendered("7")}, verify=False)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-acemath-model"].startswith("rew@")
    wrong = httpx.post(url.replace(KEY, "nobody"), json={"query": ["x"]}, verify=False)
    assert wrong.status_code == 401 and wrong.json()["error"]["code"] == "invalid_api_key"


async def test_the_http_client_of_openrlhf_and_verl_can_show_the_key(client: Client) -> None:
    import aiohttp

    url = str(client.base_url).rstrip("/").replace("http://", f"http://trainer:{KEY}@") + "/get_reward"
    payload = {"query": [rendered("7")], "prompts": [rendered_prompt()], "labels": ["7"]}
    async with aiohttp.ClientSession() as session, session.post(url, json=payload) as answer:
        assert answer.status == 200
        assert (await answer.json())["rewards"] == client.scores(candidates=["7"])


def test_no_queries_have_no_rewards(client: Client) -> None:
    assert client.ok("/get_reward", query=[], prompts=[], labels=[])["rewards"] == []


# ------------------------------------------------------------------------------------------------------- all of them


def test_duplicates_are_scored_once_and_problems_shared(client: Client) -> None:
    before = metric(client, "acemath_reward_duplicate_candidates_total")
    saved = metric(client, "acemath_reward_prompt_tokens_saved_total")
    client.ok("/classify", input=[rendered(one) for one in CANDIDATES])
    client.ok("/rerank", query=PROBLEM, documents=CANDIDATES)
    client.ok("/get_reward", query=[rendered(one) for one in CANDIDATES])
    assert metric(client, "acemath_reward_duplicate_candidates_total") == before + 3
    assert metric(client, "acemath_reward_prompt_tokens_saved_total") > saved


def metric(client: Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])


def test_an_answers_id_is_the_callers(client: Client) -> None:
    body = {"input": rendered("7"), "request_id": "mine-1"}
    assert client.ok("/classify", **body)["id"] == "classify-mine-1"
    answer = client.post("/classify", json=body, headers={"x-request-id": "header-2"})
    assert answer.json()["id"] == "classify-header-2"


def test_the_version_can_be_named(client: Client) -> None:
    version = client.ok("/rerank", query=PROBLEM, documents=CANDIDATES)["model"]
    assert client.ok("/score", text_1="x", text_2="y", model=version)["model"] == version


def test_the_examples_in_the_documentation_work(client: Client) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reward-api.md").read_text("utf-8")
    examples = re.findall(r"curl -s http://127.0.0.1:8200(\S+) .*? -d '(.*?)'\n```", page, re.DOTALL)
    assert {path for path, _ in examples} == {"/v1/score", "/classify", "/score", "/rerank", "/get_reward"}
    for path, body in examples:
        client.ok(path, **json.loads(body))


def test_the_shapes_are_in_the_openapi_document(client: Client) -> None:
    document = client.get("/openapi.json").json()
    paths = ("/classify", "/score", "/rerank", "/v1/rerank", "/v2/rerank", "/get_reward")
    for path in paths:
        operation = document["paths"][path]["post"]
        assert operation["summary"] and {"200", "400", "409", "503"} <= set(operation["responses"])
    assert "control tokens" in json.dumps(document["components"]["schemas"]["ClassifyRequest"])
