"""Threads share a pass; who computes what changes nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reward.engine.drawing import OWN, PROMPTS

from acemath_reward.engine.crew import Crew, crew_of
from acemath_reward.engine.device import place
from acemath_reward.engine.model import RewardEngine, load_engine
from acemath_reward.ports import PromptGroup

THREADS = (1, 2, 3)


@given(st.integers(1, 5), st.integers(0, 40))
@settings(deadline=None)
def test_every_piece_is_done_once(threads: int, pieces: int) -> None:
    done: list[int] = []
    crew_of(threads).each(done.append, range(pieces))
    assert sorted(done) == list(range(pieces))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_is_the_callers(threads: int) -> None:
    done: list[int] = []

    def work(piece: int) -> None:
        if piece == 0:
            raise ValueError("this one fails")
        done.append(piece)

    with pytest.raises(ValueError, match="this one fails"):
        crew_of(threads).each(work, range(5))
    if threads > 1:
        assert sorted(done) == [1, 2, 3, 4], "nobody works on when the caller goes on"
    crew_of(threads).each(done.append, [7, 8])
    assert sorted(done[-2:]) == [7, 8], "the crew is well afterwards"


def test_nobody_waits_for_a_helper_that_is_held_up() -> None:
    crew, hold, held = Crew(2), threading.Event(), threading.Event()
    me = threading.get_ident()

    def work(piece: int) -> None:
        if threading.get_ident() != me:
            held.set()
            assert hold.wait(30)
        else:
            assert held.wait(30)

    def hold_up(_: int) -> None:
        assert hold.wait(30)

    other = threading.Thread(target=crew.each, args=(hold_up, [0, 1]))
    other.start()  # takes the only helper
    done: list[int] = []
    crew.each(done.append, range(6))
    assert sorted(done) == list(range(6)), "the caller does by itself what no helper comes for"
    hold.set()
    other.join(30)
    crew.each(work, [0, 1])


def test_helpers_compute_as_the_caller_does() -> None:
    found: list[tuple[int, bool]] = []
    both = threading.Barrier(2, timeout=30)

    def work(_: int) -> None:
        both.wait()
        found.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))

    place("cpu", "float32", threads=2)
    with torch.inference_mode():
        crew_of(2).each(work, [0, 1])
    assert found == [(1, True), (1, True)]


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def engines(llama: Path, request: pytest.FixtureRequest) -> dict[int, RewardEngine]:
    return {n: load_engine(llama, place("cpu", request.param, threads=n, cell_tokens=16)) for n in THREADS}


@given(
    st.lists(
        st.tuples(st.sampled_from(PROMPTS), st.lists(st.sampled_from(OWN), min_size=1, max_size=12)),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=10)
def test_scores_are_those_of_one_thread(
    engines: dict[int, RewardEngine], drawn: list[tuple[tuple[int, ...], list[tuple[int, ...]]]]
) -> None:
    groups = [PromptGroup(prompt, tuple(own)) for prompt, own in drawn]
    expected = engines[1].score(groups)
    assert [engines[n].score(groups) for n in THREADS[1:]] == [expected] * (len(THREADS) - 1)


def test_passes_at_once_do_not_mix(engines: dict[int, RewardEngine]) -> None:
    groups = [[PromptGroup(prompt, tuple(OWN))] for prompt in PROMPTS]
    expected = [engines[1].score(one) for one in groups]
    with ThreadPoolExecutor(len(groups)) as callers:
        assert list(callers.map(engines[3].score, groups)) == expected


def test_the_threads_are_told(engines: dict[int, RewardEngine]) -> None:
    assert [engines[n].facts()["threads"] for n in THREADS] == list(THREADS)
    assert torch.get_num_threads() == 1
