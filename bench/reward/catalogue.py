"""The legs: which systems are measured, how each is started, and in which ways it is asked."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

Variants = dict[str, dict[str, Any]]
PLAIN: Variants = {"": {}}
PADDED = (4, 8, 16, 32)

OFF: Variants = {
    "all on": {},
    "prompt not shared": {"share": False},
    "one candidate a pass": {"share": False, "budget": 1},
    "duplicates not merged": {"dedup": False},
    "last layer not trimmed": {"engine": {"trim": False}},
    "weights not prepacked": {"engine": {"prepack": False}},
    "tensor operators between products": {"engine": {"compiled": False}},
    "cells of 32": {"engine": {"cell_tokens": 32}},
    "cells of 128": {"engine": {"cell_tokens": 128}},
    "live, pieces of 16 tokens": {"live": 16},
    "passes of 512 tokens": {"budget": 512},
    "passes of 8192 tokens": {"budget": 8192},
}


@dataclass(frozen=True)
class Leg:
    """One system in one process.

    Attributes:
        name: as it is asked for and shown.
        module: below `bench.reward.legs`.
        options: for its `create`.
        environment: of its process.
        python: its interpreter.
        variants: ways to ask it; the plain one is called "".
        sets: names of the sets that each variant is measured on; None: all.
        every: it takes part in every so many rounds, the first one included.
        choices: values of start options, of which the best is chosen before the rounds.
        kind: `ours`, `peer`, `off` (techniques off) or `peak`.
        sizes: values of `batch` of which the best is chosen for every set.
    """

    name: str
    module: str
    options: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    variants: Variants = field(default_factory=lambda: PLAIN)
    sets: dict[str, tuple[str, ...]] | None = None
    every: int = 1
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kind: str = "peer"
    sizes: tuple[int, ...] = ()

    def label(self, variant: str) -> str:
        """As it is shown."""
        return f"{self.name}: {variant}" if variant else self.name

    def takes(self, variant: str, set_name: str) -> bool:
        """Whether a variant is measured on a set."""
        return self.sets is None or set_name in self.sets.get(variant, ())


@dataclass(frozen=True)
class Setup:
    """What all legs share.

    Attributes:
        checkpoint: the one-label classifier.
        device: `cpu` or `cuda`.
        threads: of every system.
        infinity: interpreter of infinity's environment; None: the leg fails and says so.
    """

    checkpoint: Path
    device: str
    threads: int
    infinity: Path | None


def legs(setup: Setup) -> dict[str, Leg]:
    """Every leg that can be asked for, in the order of the tables."""
    made = [*_transformers(setup), _vllm(setup), _infinity(setup), *_ours(setup)]
    return {leg.name: leg for leg in made}


def defaults(setup: Setup) -> list[str]:
    """The legs of a run that names none; on a GPU not those that hold several copies of the weights or are for CPUs."""
    for_cpus = {"ours-workers", "ours-one", "ours-http-workers", "ours-http-one", "ours-off"}
    return [name for name in legs(setup) if setup.device == "cpu" or name not in for_cpus]


def _base(setup: Setup) -> dict[str, Any]:
    return {"checkpoint": str(setup.checkpoint), "device": setup.device, "threads": setup.threads}


def _transformers(setup: Setup) -> list[Leg]:
    base = _base(setup)
    return [
        Leg("hf-fp32", "hf", base | {"dtype": "float32"}, every=2),
        Leg("hf-bf16", "hf", base | {"dtype": "bfloat16"}, every=2),
        Leg("hf-padded-bf16", "hf", base | {"dtype": "bfloat16"}, sizes=PADDED),
    ]


def _vllm(setup: Setup) -> Leg:
    length: dict[str, Any] = {"max_model_len": 2048}
    if setup.device == "cpu":
        engine, environment = length | {"block_size": 32}, _vllm_cpu(setup)
        choices = {"max_num_batched_tokens": (2048, 1024, 4096), "block_size": (32, 128)}
    else:
        engine, environment = length | {"gpu_memory_utilization": 0.3}, {"HF_HUB_OFFLINE": "1"}
        choices = {"max_num_batched_tokens": (8192, 16384, 32768)}
    options = {"checkpoint": str(setup.checkpoint), "engine": engine}
    variants: Variants = {"": {}, "prefix cache warm": {"cache": "warm"}}
    return Leg("vllm", "vllm", options, environment, variants=variants, choices=choices)


def _vllm_cpu(setup: Setup) -> dict[str, str]:
    """All threads for the engine, which by default keeps a core for its scheduler."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: nothing spins for messages beside the threads
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(setup.threads),
    }


def _infinity(setup: Setup) -> Leg:
    python = str(setup.infinity) if setup.infinity else ""
    options = _base(setup) | {"dtype": "bfloat16", "batch": 32}
    environment = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    environment |= {"OMP_NUM_THREADS": str(setup.threads)}
    return Leg("infinity", "infinity", options, environment, python, choices={"batch": (32, 8)})


def _ours(setup: Setup) -> list[Leg]:
    base, single = _base(setup), {"threads": 1}
    workers = {"workers": setup.threads}
    make = partial(Leg, kind="ours")
    both = ("all on", "duplicates not merged")
    off_sets: dict[str, tuple[str, ...]] = {name: ("S2", "S5") if name in both else ("S2",) for name in OFF}
    return [
        make("ours", "ours", base),
        make("ours-workers", "workers", base | single | workers, environment={"OMP_NUM_THREADS": "1"}),
        make("ours-one", "ours", base | single, environment={"OMP_NUM_THREADS": "1"}),
        make("ours-http", "http", base | {"services": 1}),
        make("ours-http-one", "http", base | single | {"services": 1}),
        make("ours-http-workers", "http", base | single | {"services": setup.threads}),
        Leg("ours-off", "ours", base, variants=OFF, sets=off_sets, every=2, kind="off"),
        Leg("peak", "peak", base, variants={"team": {}, "workers": {"kind": "workers"}}, sets={}, kind="peak"),
    ]
