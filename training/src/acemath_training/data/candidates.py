"""Candidates of the policy for the reward model: sampled by a vLLM server over HTTP, labelled by answer.

vLLM is a process started here and ended here, never imported. Only training families are sampled
(`Mixture` refuses others). A run appends to its file and continues where it stopped.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from acemath_core.prompts import policy_messages
from acemath_training import settings
from acemath_training.data import pools
from acemath_training.data.mixture import Mixture
from acemath_training.data.pools import Candidate, Pool
from acemath_training.data.problem import Problem
from acemath_training.data.rows import Encoder
from acemath_training.errors import DataError

Judge = Callable[[str, str], bool | None]
"""Whether a candidate's text answers with the reference answer; None when it could not be decided in time."""

_READY_S = 600.0
_REQUEST_S = 600.0
_STOP_S = 30.0
_AT_ONCE = 12


def sample(
    mixture: Mixture,
    encoder: Encoder,
    judge: Judge,
    url: str,
    out: Path,
    *,
    problems: int,
    first: int,
    n: int = 8,
    temperature: float = 0.9,
    max_tokens: int = 200,
    minutes: float = 60.0,
    seed: int = 0,
) -> int:
    """Write pools for rows `first …` of the mixture to `out` until there are `problems` or the time is up.

    Returns:
        How many problems the file holds at the end; progress is printed.

    Raises:
        DataError: when the server refuses or fails.
    """
    done = pools.resume(out)
    end = time.monotonic() + minutes * 60
    with httpx.Client(base_url=url, timeout=_REQUEST_S) as client, ThreadPoolExecutor(_AT_ONCE) as workers:

        def ask(index: int) -> Pool | None:
            if time.monotonic() > end:
                return None
            problem = mixture[index]
            body = _body(encoder, problem, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed + index)
            return _pool(problem, _complete(client, body), judge)

        for pool in workers.map(ask, range(first + done, first + problems)):
            if pool is None:
                break
            pools.append(out, pool)
            done += 1
            _report(done, problems, pool)
    return done


@contextmanager
def vllm_server(checkpoint: Path, log: Path, *, threads: int = 2, max_model_len: int = 1024) -> Iterator[str]:
    """A vLLM server on a free port for the time of the block; yields its base URL.

    Raises:
        DataError: when it does not become ready; its log is named.
    """
    port = _free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(checkpoint)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy", "--enforce-eager"]
    command += ["--max-model-len", str(max_model_len), "--max-num-seqs", "96", "--dtype", "bfloat16"]
    # A seeded request whose prompt is prefilled in parts kills vLLM's CPU worker ("CPU Generator does not use
    # offset", 0.32.0), so prompts are prefilled whole.
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=settings.vllm(threads), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _end_group(process)


def _body(encoder: Encoder, problem: Problem, **sampling: Any) -> dict[str, Any]:
    ids = encoder.encode_prompt(policy_messages(problem.problem))
    return {"model": "policy", "prompt": ids, "top_p": 1.0, "logprobs": 1, **sampling}


def _complete(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        response = client.post("/v1/completions", json=body)
        response.raise_for_status()
        choices: list[dict[str, Any]] = response.json()["choices"]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise DataError(f"the vLLM server did not complete a prompt: {error}") from error
    return choices


def _pool(problem: Problem, choices: list[dict[str, Any]], judge: Judge) -> Pool:
    found = []
    for choice in choices:
        values = [value for value in choice["logprobs"]["token_logprobs"] if value is not None]
        score = sum(values) / max(len(values), 1)
        text = str(choice["text"])
        correct = judge(text, problem.answer) if choice["finish_reason"] == "stop" else False
        if correct is None:
            continue  # a label that nobody knows teaches nothing, and "wrong" would teach something false
        found.append(Candidate(text=text, correct=correct, score=round(score, 4), model="policy"))
    return Pool(
        problem=problem.problem,
        answer=problem.answer,
        source=problem.source,
        family=problem.family,
        candidates=tuple(found),
    )


def _report(done: int, problems: int, pool: Pool) -> None:
    right = sum(candidate.correct for candidate in pool.candidates)
    sys.stdout.write(f"{done}/{problems} {pool.source}/{pool.family}: {right} of {len(pool.candidates)} right\n")
    sys.stdout.flush()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        if _healthy(url):
            return
        # The process's end is the event waited for between two questions.
        with suppress(subprocess.TimeoutExpired):
            raise DataError(f"the vLLM server ended with status {process.wait(1.0)}; see {log}")
    raise DataError(f"the vLLM server was not ready after {_READY_S:.0f} s; see {log}")


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
