"""`WS /v1/score/live` on a real socket, with the real engine: the bits of `POST /v1/score`, however it arrives."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from reward.live_client import MESSAGES, Live
from reward.publishing import promote, publish_reward
from reward.serving import serve, wait_for, wait_until_ready

from acemath_prompts import PromptEncoder
from acemath_registry import Registry
from acemath_reward.app import create_app
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.settings import RewardSettings

TEXTS = [
    "",
    " ",
    "\n\nTom buys 4 more.\n",
    "3 + 4 = 7, so Tom has \\boxed{7} apples.",
    "Tom has 3 apples and buys 4 more.\n\nHow many? " * 4 + "\\boxed{7}",
    "<|im_end|>\n<|im_start|>user\nno e\u0301 🙂 don't\r\n  \t x",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Iterator[str]:
    scratch = tmp_path_factory.mktemp("live")
    registry = Registry(scratch / "registry")
    promote(registry, publish_reward(registry, llama), scratch)
    settings = RewardSettings(registry_root=registry.root, cache_dir=scratch / "cache", poll_seconds=0.05)
    placement = place("cpu", "bfloat16", threads=1, row_tile=16, cell_tokens=16)
    with serve(create_app(settings, partial(load_engine, placement=placement))) as address:
        wait_until_ready(address)
        yield address


def posted(url: str, candidates: list[Any]) -> list[dict[str, Any]]:
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:
        answer = client.post("/v1/score", json={"messages": MESSAGES, "candidates": candidates})
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def batched(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def cut(draw: random.Random, text: Any) -> list[Any]:
    places = sorted({0, len(text), *(draw.randint(0, len(text)) for _ in range(draw.randint(0, 8)))})
    return [text[a:b] for a, b in itertools.pairwise(places)] or [text]


def test_random_pieces_give_the_bits_of_one_call(url: str, llama: Path) -> None:
    """Two connections and a POST at once; pieces of all candidates in turn, as they are generated."""
    draw = random.Random(7)
    ids = PromptEncoder.from_directory(llama)._encode_text(TEXTS[4])
    candidates: list[Any] = [*TEXTS, ids, [*ids[:20], 2]]
    expected = posted(url, [c if isinstance(c, str) else {"token_ids": c} for c in candidates])
    for _ in range(4):
        with Live(url) as one, Live(url) as other:
            left = [(live, i, cut(draw, c)) for live in (one, other) for i, c in enumerate(candidates)]
            while left:
                live, index, pieces = draw.choice(left)
                live.write(index, [pieces.pop(0)], end=not pieces)
                left = [entry for entry in left if entry[2]]
            assert posted(url, [TEXTS[3]])[0]["score"] == expected[3]["score"]
            for live in (one, other):
                scores = live.scores(len(candidates))
                assert [scores[i]["score"] for i in range(len(candidates))] == [item["score"] for item in expected]
                assert [scores[i]["tokens"] for i in range(len(candidates))] == [item["tokens"] for item in expected]


def test_partials_are_the_scores_of_what_came_before_the_peek(url: str, llama: Path) -> None:
    """All candidates in turn, a peek behind every piece, and the same final scores as ever."""
    draw = random.Random(11)
    ids = PromptEncoder.from_directory(llama)._encode_text(TEXTS[4])
    candidates: list[Any] = [*TEXTS, ids, [*ids[:20], 2]]
    left = [cut(draw, candidate) for candidate in candidates]
    so_far: list[Any] = [candidate[:0] for candidate in candidates]
    asked, partials = list[Any](), list[dict[str, Any]]()
    with Live(url) as live:
        while any(left):
            writing = [index for index, pieces in enumerate(left) if pieces]
            for index in writing:
                so_far[index] = so_far[index] + left[index][0]
                live.write(index, [left[index].pop(0)], end=False)
                live.send(type="peek", index=index)
            answers = {frame["index"]: frame for frame in (live.receive() for _ in writing)}
            assert {frame["type"] for frame in answers.values()} == {"partial"}
            asked += [so_far[index] for index in writing]
            partials += [answers[index] for index in writing]
        for index in range(len(candidates)):
            live.send(type="end", index=index)
        scores = live.scores(len(candidates))
    wire = [c if isinstance(c, str) else {"token_ids": c} for c in (*asked, *candidates)]
    expected = [(item["score"], item["tokens"]) for item in posted(url, wire)]
    assert [(frame["score"], frame["tokens"]) for frame in partials] == expected[: len(asked)]
    assert [(scores[i]["score"], scores[i]["tokens"]) for i in range(len(candidates))] == expected[len(asked) :]


def test_a_character_in_two_pieces_is_one(url: str) -> None:
    """JSON spells it as two of 16 bits; a peek between them sees the text before it."""
    before, text = "so ", "so 🙂🙂 it is 7"
    units = [chr(int.from_bytes(pair, "little")) for pair in batched(text.encode("utf-16-le"), 2)]
    assert len(units) == len(text) + 2
    whole, part = posted(url, [text, before])
    with Live(url) as live:
        live.write(0, units[:4], end=False)
        live.send(type="peek", index=0)
        assert live.receive() == {"type": "partial", **part, "index": 0}
        live.write(0, units[4:])
        assert live.scores(1)[0] == {"type": "score", **whole}


def test_most_is_computed_before_the_end(url: str) -> None:
    def computed() -> float:
        lines = httpx.get(url + "/metrics", verify=False).text.splitlines()
        return float(next(x for x in lines if x.startswith("acemath_reward_live_tokens_total ")).split()[1])

    before, tokens = computed(), posted(url, [TEXTS[4]])[0]["tokens"]
    with Live(url) as live:
        live.write(0, [TEXTS[4]], end=False)
        wait_for(lambda: computed() - before > tokens - 3 * 16)
        live.send(type="end", index=0)
        assert live.scores(1)[0]["tokens"] == tokens
    wait_for(lambda: computed() - before == tokens)


def test_a_candidate_that_is_too_long_fails_alone(url: str) -> None:
    with Live(url) as live:
        live.write(0, ["Tom has 3 apples. " * 60], end=False)
        frame = live.receive()
        assert (frame["type"], frame["index"], frame["code"]) == ("error", 0, "context_length_exceeded")
        live.write(0, ["more, which the server has no use for"])
        live.write(1, ["\\boxed{7}"])
        assert live.scores(1)[1]["score"] == posted(url, ["\\boxed{7}"])[0]["score"]
