"""The command line of a vLLM server that scores; flags are those of vLLM 0.32."""

from __future__ import annotations

from pathlib import Path

from acemath_core.processes.vllm import SILENT
from acemath_core.processors import cpu_dtype
from acemath_reward.engine.config import EngineConfig
from acemath_reward.settings import RewardSettings

GUARD = "acemath_vllm_guard.OnlyScores"
"""Import path of the middleware that vLLM loads from `acemath_core.processes.vllm.SIDE`."""

LOOPBACK = "127.0.0.1"


def command_line(settings: RewardSettings, *, model: Path, name: str, port: int, config: EngineConfig) -> list[str]:
    """The command that scores with `model` as `name` on `port`; no key in it, since `ps` shows it.

    Args:
        settings: the service's.
        model: directory of the checkpoint.
        name: what every answer carries.
        port: on the loopback address.
        config: the checkpoint's.
    """
    share = settings.gpu_memory_utilization
    return [
        *settings.vllm_command,
        *("--model", str(model), "--served-model-name", name),
        *("--runner", "pooling"),
        *(["--convert", "classify"] if config.head == "linear" else []),  # two layers: a class of vLLM's own
        *("--host", LOOPBACK, "--port", str(port)),
        *("--dtype", dtype_of(settings), "--tensor-parallel-size", str(settings.tensor_parallel_size)),
        # A sequence as long as the model takes must fit into one step, whatever of chunked prefill vLLM supports here.
        *("--max-model-len", str(config.max_tokens)),
        *("--max-num-batched-tokens", str(max(settings.batch_tokens, config.max_tokens))),
        *(["--gpu-memory-utilization", str(share)] if share is not None else []),
        *(["--enforce-eager"] if settings.enforce_eager else []),
        *("--middleware", GUARD),
        *SILENT,
        *settings.extra_args,
    ]


def dtype_of(settings: RewardSettings) -> str:
    """The number format that vLLM computes in; its own `auto` would take a float32 checkpoint as it lies."""
    if settings.dtype != "auto":
        return settings.dtype
    return cpu_dtype() if settings.device == "cpu" else "bfloat16"
