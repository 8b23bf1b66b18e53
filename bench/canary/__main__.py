"""Does the policy's canary let good loads in and keep wrong ones out, on real vLLM, at the tolerance that is set?

    python -m bench.canary CHECKPOINT --out FILE.json [--seeds 5]

Good loads: the checkpoint, and copies whose weights moved a little as by more training (each with the canary that the
trainer computes of it, by plain transformers), in bfloat16 and in float32, with the prompt in one piece and in pieces
of 64 tokens: `--seeds` times four loads. Wrong loads: the checkpoint's own canary against an engine that loaded a
damaged copy of it. Every load is a vLLM server of its own, started as the policy agent starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from acemath_policy.canary import Canary, Tolerance, check
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.server import Launcher
from acemath_policy.settings import PolicySettings, inherited_environment
from acemath_policy.vllm_server import VllmClient
from acemath_registry import ModelRef
from acemath_training.embedded import canary as trainer
from bench.canary.models import WRONG, other_theta, trained_on, write
from bench.reward import machine

REF = ModelRef("bench", "s1-000000000000")
WHOLE = ("--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192")
PIECES = ("--enable-chunked-prefill", "--max-num-batched-tokens", "64")
ANYTHING = Tolerance(float("inf"), float("inf"))


@dataclass(frozen=True, slots=True)
class Load:
    """One server to start.

    Attributes:
        what: in words.
        model: the checkpoint that it loads.
        canary: what it is compared with.
        dtype: that it computes in.
        pieces: whether a prompt goes through it in pieces.
        good: whether the canary has to let it in.
    """

    what: str
    model: Path
    canary: Canary
    dtype: str
    pieces: bool
    good: bool


def good_loads(checkpoint: Path, scratch: Path, seeds: int) -> Iterator[Load]:
    """Of the checkpoint and of copies that were trained on."""
    for seed in range(seeds):
        model = write(checkpoint, scratch / f"good-{seed}", trained_on(seed)) if seed else checkpoint
        canary = Canary.of(trainer.policy(model))
        for dtype in ("bfloat16", "float32"):
            for pieces in (False, True):
                yield Load(f"weights {seed}", model, canary, dtype, pieces, good=True)


def wrong_loads(checkpoint: Path, scratch: Path) -> Iterator[Load]:
    """Of damaged copies."""
    canary = Canary.of(trainer.policy(checkpoint))
    for number, (what, change) in enumerate(WRONG.items()):
        model = write(checkpoint, scratch / f"wrong-{number}", change)
        yield Load(what, model, canary, "float32", pieces=False, good=False)
    model = write(checkpoint, scratch / "wrong-theta", lambda model: None)
    other_theta(model)
    yield Load("another base of the rotary embedding", model, canary, "float32", pieces=False, good=False)


async def measure(load: Load, scratch: Path) -> dict[str, Any]:
    """Start a server, compare, end it."""
    settings = PolicySettings(
        registry_root=scratch, cache_dir=scratch / "cache", first_vllm_port=18_310, last_vllm_port=18_319,
        enforce_eager=True, max_model_len=1024, cpu_kvcache_space=1, omp_num_threads=2, dtype=load.dtype,
        max_num_seqs=32, extra_args=PIECES if load.pieces else WHOLE,
    )  # fmt: skip
    metrics = PolicyMetrics(CollectorRegistry())
    server = Launcher(settings, inherited_environment(), None, metrics).make(REF, load.model, ())
    began = time.monotonic()
    try:
        await server.start()
        started = time.monotonic() - began
        client = VllmClient(server.endpoint, str(REF), None)
        mean, largest = await check(load.canary, client, ANYTHING, settings.warm_timeout_seconds)
        await client.aclose()
    finally:
        await server.kill()
    allowed = Tolerance(settings.canary_mean_tolerance, settings.canary_max_tolerance)
    passed = mean <= allowed.mean and largest <= allowed.largest
    return {
        "what": load.what, "good": load.good, "dtype": load.dtype, "pieces": load.pieces, "mean": mean,
        "largest": largest, "passed": passed, "seconds_to_start": round(started, 1),
        "allowed": {"mean": allowed.mean, "largest": allowed.largest},
    }  # fmt: skip


async def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One load after the other."""
    found = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="acemath-canary-") as folder:
        scratch = Path(folder)
        for loads in (good_loads(options.checkpoint, scratch, options.seeds), wrong_loads(options.checkpoint, scratch)):
            for load in loads:
                found.append(await measure(load, scratch))
                print(json.dumps(found[-1]), flush=True)
                keep(options.out, found)
    return found


def keep(out: Path, found: list[dict[str, Any]]) -> None:
    """Write what there is so far."""
    out.write_text(json.dumps({"machine": machine.described(), "loads": found}, indent=1) + "\n")


def main() -> None:
    """Read the arguments, measure, write; status 1 when the canary was wrong about a load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of the policy, a version's directory")
    parser.add_argument("--seeds", type=int, default=5, help="how many weights are loaded, in four ways each")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = asyncio.run(measure_all(options))
    raise SystemExit(0 if all(one["passed"] is one["good"] for one in found) else 1)


if __name__ == "__main__":
    main()
