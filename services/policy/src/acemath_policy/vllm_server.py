"""What a vLLM server of a policy is told, and what it answers. vLLM is never imported.

Flags are those of vLLM 0.32 (`vllm/entrypoints/launchers/cli_args.py`); what every server is told is in
`acemath_core.processes.vllm`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from acemath_core.processes.vllm import SILENT
from acemath_core.processors import cpu_dtype
from acemath_policy.settings import PolicySettings

GENERATED = "vllm:generation_tokens_total"
RUNNING = "vllm:num_requests_running"
GUARD = "acemath_vllm_guard.OnlyWhatIsUsed"
"""Import path of the middleware that vLLM loads from `acemath_core.processes.vllm.SIDE`."""

WAITING = "vllm:num_requests_waiting"
_SAMPLE = re.compile(rf"^({GENERATED}|{RUNNING}|{WAITING})(?:\{{[^}}]*\}})? ([0-9.eE+-]+)$", re.MULTILINE)
_CACHE = re.compile(r'^vllm:cache_config_info\{[^}]*\bkv_cache_size_tokens="(\d+)"', re.MULTILINE)
_CONNECTIONS = httpx.Limits(max_connections=8)


class VllmFailure(Exception):
    """A vLLM server did not answer as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one server does at one moment.

    Attributes:
        generated: tokens made since it started.
        running: sequences in the batch.
        waiting: requests in the queue.
    """

    generated: int
    running: int
    waiting: int

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.running == 0 and self.waiting == 0


def command_line(settings: PolicySettings, *, model: Path, name: str, port: int) -> list[str]:
    """The command that serves `model` as `name` (`name@version`) on `port`; no key in it, since `ps` shows it."""
    optional: dict[str, object] = {
        "--max-model-len": settings.max_model_len,
        "--gpu-memory-utilization": settings.gpu_memory_utilization,
    }
    return [
        *settings.vllm_command,
        *("--model", str(model), "--served-model-name", name),
        *("--fingerprint-mode", "custom", "--fingerprint-value", name),  # every answer carries its version
        *("--host", settings.bind, "--port", str(port)),
        *("--shutdown-timeout", str(settings.shutdown_timeout_seconds)),
        *("--generation-config", "vllm"),  # the checkpoint's sampling defaults must not override a request's silence
        *("--dtype", dtype_of(settings), "--max-num-seqs", str(settings.max_num_seqs)),
        *("--tensor-parallel-size", str(settings.tensor_parallel_size)),
        *(part for flag, value in optional.items() if value is not None for part in (flag, str(value))),
        *(["--enforce-eager"] if settings.enforce_eager else []),
        *(_CPU_SEEDED if settings.cpu_kvcache_space is not None else []),
        *("--middleware", GUARD),
        *SILENT,
        *settings.extra_args,
    ]


def dtype_of(settings: PolicySettings) -> str:
    """The number format that a server computes in, as vLLM names it; a server is on a CPU if it has a CPU's cache."""
    return settings.dtype or (cpu_dtype() if settings.cpu_kvcache_space is not None else "bfloat16")


# A seeded request whose prompt is prefilled in two parts ends the CPU worker ("CPU Generator does not use offset"), and
# every request of the gateway is seeded: prompts are prefilled whole.
_CPU_SEEDED = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]


class VllmClient:
    """What the agent asks a vLLM server; every call has a deadline.

    Args:
        base_url: e.g. `http://127.0.0.1:8110`.
        name: the `name@version` that the server must answer to.
        key: the internal key.
    """

    def __init__(self, base_url: str, name: str, key: SecretStr | None) -> None:
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._name = name
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, limits=_CONNECTIONS, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def healthy(self, timeout: float) -> bool | None:
        """True: it serves; False: it says that its engine is dead; None: it does not answer (yet)."""
        try:
            response = await self._http.get("/health", timeout=timeout)
        except httpx.HTTPError:
            return None
        return response.is_success

    async def load(self, timeout: float) -> Load:
        """Its counters.

        Raises:
            VllmFailure: no answer, or not vLLM's metrics.
        """
        text = (await self._answer("GET", "/metrics", None, timeout)).text
        sums = dict.fromkeys((GENERATED, RUNNING, WAITING), 0.0)
        seen = set()
        for metric, value in _SAMPLE.findall(text):  # one line for each engine of a data-parallel server
            sums[metric] += float(value)
            seen.add(metric)
        if len(seen) < len(sums):
            raise VllmFailure(f"/metrics has no {', '.join(sorted(set(sums) - seen))}; is this vLLM 0.32 or later?")
        return Load(int(sums[GENERATED]), int(sums[RUNNING]), int(sums[WAITING]))

    async def caches(self, timeout: float) -> tuple[int, ...]:
        """Tokens whose keys and values each of its engines keeps; empty when it does not say.

        Raises:
            VllmFailure: no answer.
        """
        text = (await self._answer("GET", "/metrics", None, timeout)).text
        return tuple(map(int, _CACHE.findall(text)))

    async def generate(self, token_ids: Sequence[int], max_tokens: int, timeout: float) -> int:
        """Generate greedily; returns how many tokens came.

        Raises:
            VllmFailure: no answer, no token, or an answer of another version.
        """
        document = await self._complete(token_ids, timeout, max_tokens=max_tokens)
        made = document.get("usage", {}).get("completion_tokens", 0)
        if not made:
            raise VllmFailure("the server answered without a token")
        return int(made)

    async def prompt_logprobs(self, token_ids: Sequence[int], timeout: float) -> list[float]:
        """log p(token_ids[i + 1] | token_ids[: i + 1]) for every i, natural logarithm.

        Raises:
            VllmFailure: no answer, an answer of another version, or one without finite log-probabilities.
        """
        document = await self._complete(token_ids, timeout, max_tokens=1, prompt_logprobs=0)
        try:
            rows = document["choices"][0]["prompt_logprobs"][1:]
            found = [float(row[str(token)]["logprob"]) for row, token in zip(rows, token_ids[1:], strict=True)]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise VllmFailure("the server answered without the prompt's log-probabilities") from error
        if not all(map(math.isfinite, found)):
            raise VllmFailure("the server's log-probabilities are not finite")
        return found

    async def _complete(self, token_ids: Sequence[int], timeout: float, **more: int) -> dict[str, Any]:
        body = {"model": self._name, "prompt": list(token_ids), "temperature": 0, **more}
        response = await self._answer("POST", "/v1/completions", body, timeout)
        try:
            document = response.json()
        except ValueError as error:
            raise VllmFailure("the server's answer is not JSON") from error
        stamps = document.get("model"), document.get("system_fingerprint")
        if stamps != (self._name, self._name):
            raise VllmFailure(f"the server answers as {stamps[0]!r} / {stamps[1]!r}, not as {self._name!r}")
        return dict(document)

    async def _answer(self, method: str, path: str, body: object, timeout: float) -> httpx.Response:
        try:
            response = await self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise VllmFailure(f"{path}: {type(error).__name__}") from error
        if not response.is_success:
            raise VllmFailure(f"{path}: HTTP {response.status_code}: {response.text[:300]}")
        return response
