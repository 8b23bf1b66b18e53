"""What lives in this process of the product: so that a test sees what many versions leave behind, whatever it is."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter

from prometheus_client import CollectorRegistry

_COUNTED = ("acemath_", "prometheus_client.", "torch.Tensor", "httpx.AsyncClient", "jinja2.")
_POOLS = ("asyncio_", "ThreadPoolExecutor", "AnyIO")  # they grow to their bound, and stay there


def census(*figures: CollectorRegistry) -> Counter[str]:
    """How many objects there are of each class that counts, tasks, threads but for pools', and series of `figures`."""
    gc.collect()
    found = Counter(name for name in map(_name, gc.get_objects()) if name.startswith((*_COUNTED, "task ")))
    found["threads"] = sum(not thread.name.startswith(_POOLS) for thread in threading.enumerate())
    found["series"] = sum(len(metric.samples) for one in figures for metric in one.collect())
    return found


def grown(before: Counter[str], after: Counter[str]) -> dict[str, tuple[int, int]]:
    """What there is more of, with both counts."""
    return {name: (before[name], count) for name, count in after.items() if count > before[name]}


def _name(one: object) -> str:
    if type(one) is asyncio.Task:  # done or not: by what it runs
        return f"task {getattr(one.get_coro(), '__qualname__', '?')}"
    return f"{type(one).__module__}.{type(one).__qualname__}"
