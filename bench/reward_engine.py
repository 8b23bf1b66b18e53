"""How fast is the reward engine, what does each technique bring, and how far is it from its matrix products alone?

    python bench/reward_engine.py CHECKPOINT [--prompt 150] [--own 300] [--candidates 8] [--repeats 5] [--threads 1]
                                  [--json FILE]

CHECKPOINT is a directory with a one-label classifier, e.g. .local/registry/models/acemath-embedded-reward/<version>.
Random ids of one problem: a prompt and candidates of `--own` tokens on average (a half to one and a half times that).

Every leg is the engine with one thing different, all in turn, `--repeats` times. *Useful* tokens count the prompt once
and every candidate once, whatever a leg computes. The peak is the rate of the layers' own products, at the engine's
number of rows, prepacked where it prepacks, and nothing else. CPU seconds are the process's: on a busy machine they say
more than the clock. The live leg hands tokens over in pieces of 16 and computes after each; its tail is what is left
after the last token.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from acemath_reward.engine.config import EngineConfig, read_config
from acemath_reward.engine.device import Placement, place
from acemath_reward.engine.linear import TiledLinear
from acemath_reward.engine.model import RewardEngine
from acemath_reward.engine.weights import load_tensors
from acemath_reward.ports import PromptGroup, TokenIds

PIECE = 16


@dataclass(frozen=True)
class Leg:
    """One way to score the group: its name, and a run that gives the seconds of its tail, if it has one."""

    name: str
    run: Callable[[], float | None]


def draw_group(vocabulary: int, prompt: int, own: int, candidates: int) -> PromptGroup:
    """One problem, the same for everybody."""
    draw = random.Random(3)

    def ids(length: int) -> TokenIds:
        return tuple(draw.randrange(vocabulary) for _ in range(length))

    return PromptGroup(ids(prompt), tuple(ids(draw.randint(own // 2, own * 3 // 2)) for _ in range(candidates)))


def make_legs(checkpoint: Path, base: Placement, group: PromptGroup) -> list[Leg]:
    """The engine as it is, and with each technique off."""
    config = read_config(checkpoint)
    tensors = load_tensors(checkpoint, config)

    def engine(**changes: bool | int) -> RewardEngine:
        return RewardEngine(config, dict(tensors), replace(base, **changes))  # type: ignore[arg-type]

    usual = engine()
    legs = [
        Leg("all on", lambda: _quietly(usual, [group])),
        Leg("prompt not shared", lambda: _quietly(usual, [PromptGroup(group.prompt, (c,)) for c in group.candidates])),
        Leg("a pass for each candidate", lambda: _one_by_one(usual, group)),
        Leg("live, pieces of 16", lambda: _live(usual, group)),
    ]
    for name, changes in (
        ("weights not prepacked", {"prepack": False}),
        ("last layer not trimmed", {"trim": False}),
        ("cells of 32", {"cell_tokens": 32}),
        ("cells of 128", {"cell_tokens": 128}),
        ("cells of 256", {"cell_tokens": 256}),
    ):
        other = engine(**changes)
        legs.append(Leg(name, lambda other=other: _quietly(other, [group])))  # type: ignore[misc]
    return legs


def _quietly(engine: RewardEngine, groups: list[PromptGroup]) -> None:
    engine.score(groups)


def _one_by_one(engine: RewardEngine, group: PromptGroup) -> None:
    for candidate in group.candidates:
        engine.score([PromptGroup(group.prompt, (candidate,))])


def _live(engine: RewardEngine, group: PromptGroup) -> float:
    """All candidates written at the same pace; seconds from the last token of the last one to its score."""
    session = engine.open(group.prompt)
    try:
        for start in range(0, max(map(len, group.candidates)), PIECE):
            for index, own in enumerate(group.candidates):
                if own[start : start + PIECE]:
                    session.extend(index, own[start : start + PIECE])
                if start < len(own) <= start + PIECE:
                    session.finish(index)
            ended = time.perf_counter()
            engine.forward([part.cell for part in session.due()])
        return time.perf_counter() - ended
    finally:
        session.close()


def matmul_peak(config: EngineConfig, placement: Placement, rounds: int) -> float:
    """Tokens per second of a layer's products alone, times the layers; the best of some rounds."""
    width = (config.heads + 2 * config.kv_heads) * config.head_dim
    shapes = [
        (width, config.hidden_size),
        (config.hidden_size, config.heads * config.head_dim),
        (2 * config.intermediate_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
    ]
    return placement.row_tile / (config.layers * sum(_product_seconds(shape, placement, rounds) for shape in shapes))


def _product_seconds(shape: tuple[int, int], placement: Placement, rounds: int) -> float:
    with torch.inference_mode():
        weight = torch.randn(shape).to(placement.device, placement.dtype)
        x = torch.randn(placement.row_tile, shape[1]).to(placement.device, placement.dtype)
        product = TiledLinear(weight, None, placement)
        return min(_seconds(lambda: product(x)) for _ in range(rounds))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(legs: list[Leg], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Wall, CPU and tail seconds of each leg, the legs in turn; the first round is discarded."""
    found: dict[str, dict[str, list[float]]] = {leg.name: {"wall": [], "cpu": [], "tail": []} for leg in legs}
    for turn in range(repeats + 1):
        for leg in legs:
            wall, cpu = time.perf_counter(), time.process_time()
            tail = leg.run()
            if turn:
                found[leg.name]["wall"].append(time.perf_counter() - wall)
                found[leg.name]["cpu"].append(time.process_time() - cpu)
                found[leg.name]["tail"] += [] if tail is None else [tail]
    return found


def report(found: dict[str, dict[str, list[float]]], useful: int, peak: float) -> dict[str, Any]:
    """Rates of each leg, and their share of the peak."""
    rows: dict[str, Any] = {}
    for name, seconds in found.items():
        wall, cpu = statistics.median(seconds["wall"]), statistics.median(seconds["cpu"])
        rows[name] = {
            "useful_tokens_per_second": round(useful / wall, 1),
            "slowest": round(useful / max(seconds["wall"]), 1),
            "fastest": round(useful / min(seconds["wall"]), 1),
            "useful_tokens_per_cpu_second": round(useful / cpu, 1),
            "share_of_peak": round(useful / wall / peak, 3),
        }
        if seconds["tail"]:
            rows[name]["tail_seconds"] = round(statistics.median(seconds["tail"]), 4)
    return rows


def show(result: dict[str, Any]) -> None:
    """The same as a table."""
    print(f"{result['useful_tokens']} useful tokens; peak of the products {result['peak_tokens_per_second']} tokens/s")
    print(f"{'':28}{'tokens/s':>10}{'min':>9}{'max':>9}{'per CPU s':>11}{'of peak':>9}")
    for name, row in result["legs"].items():
        rates = (row["useful_tokens_per_second"], row["slowest"], row["fastest"], row["useful_tokens_per_cpu_second"])
        line = f"{name:28}{rates[0]:10}{rates[1]:9}{rates[2]:9}{rates[3]:11}{row['share_of_peak']:9.1%}"
        print(line + (f"  tail {row['tail_seconds'] * 1000:.0f} ms" if "tail_seconds" in row else ""))


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    for name, default in (("prompt", 150), ("own", 300), ("candidates", 8), ("repeats", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    placement = place("cpu", options.dtype, threads=options.threads)
    config = read_config(options.checkpoint)
    group = draw_group(config.vocab_size, options.prompt, options.own, options.candidates)
    load = os.getloadavg()[0]
    before = matmul_peak(config, placement, 20)
    found = measure(make_legs(options.checkpoint, placement, group), options.repeats)
    peak = max(before, matmul_peak(config, placement, 20))
    result = {
        "checkpoint": options.checkpoint.name,
        "useful_tokens": group.tokens,
        "lengths": {"prompt": len(group.prompt), "candidates": list(map(len, group.candidates))},
        "peak_tokens_per_second": round(peak, 1),
        "legs": report(found, group.tokens, peak),
        "repeats": options.repeats,
        "machine": {"cpu": _cpu(), "torch": torch.__version__, "threads": options.threads, "load_before": load},
        "dtype": str(placement.dtype).removeprefix("torch."),
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    named = next((line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")), None)
    return f"{named or platform.processor()}{' (AMX)' if 'amx_bf16' in text else ''}"


if __name__ == "__main__":
    main()
