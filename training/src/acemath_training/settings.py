"""The environment of the processes that training starts: the only place that reads the surrounding one."""

import os
import sys
from pathlib import Path


def torchrun(threads: int) -> dict[str, str]:
    """The environment of a job's ranks on a CPU.

    Large allocations are kept by malloc instead of being mapped and zeroed anew in each step; one thread per
    rank never waits for a descheduled sibling inside a kernel. On a shared machine the two together took a
    step from 49 s to 6 s.
    """
    own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    own |= {"MALLOC_MMAP_THRESHOLD_": "536870912", "MALLOC_TRIM_THRESHOLD_": "2147483648", "MALLOC_ARENA_MAX": "1"}
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        own["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed calls `ninja` and the compiler for its communication op; both may lie beside the interpreter.
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **own}


def vllm(threads: int) -> dict[str, str]:
    """The environment of a vLLM server on a CPU that shares its cores."""
    own = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **own}
