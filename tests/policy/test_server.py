from __future__ import annotations

import socket

import pytest

from acemath_core.processes.vllm import NoFreePort, environment, free_port
from acemath_policy.server import url_of
from acemath_policy.settings import PolicySettings


def test_the_first_free_port_that_is_not_taken() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        first = busy.getsockname()[1]
        assert free_port("127.0.0.1", range(first, first + 4), {first + 1}) >= first + 2
        with pytest.raises(NoFreePort, match=f"no free port for vLLM in {first}–{first}"):
            free_port("127.0.0.1", range(first, first + 1), ())


@pytest.mark.parametrize(("host", "url"), [("a.b", "http://a.b:1"), ("::1", "http://[::1]:1")])
def test_base_urls(host: str, url: str) -> None:
    assert url_of(host, 1) == url


@pytest.mark.parametrize(("ranks", "in_the_engine"), [(1, True), (2, False)])
def test_one_worker_with_threads_of_its_own_choice_runs_in_the_engine(
    settings: PolicySettings, ranks: int, in_the_engine: bool
) -> None:
    chosen = settings.model_copy(update={"omp_num_threads": 2, "tensor_parallel_size": ranks})
    made = environment(chosen, {}, None)
    assert (made["OMP_NUM_THREADS"], made["VLLM_CPU_OMP_THREADS_BIND"]) == ("2", "nobind")
    assert (made.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0") is in_the_engine


def test_vllm_chooses_its_threads_where_nobody_says_how_many(settings: PolicySettings) -> None:
    assert not {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} & environment(settings, {}, None).keys()
