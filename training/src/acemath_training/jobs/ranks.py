"""What the ranks of a job tell each other outside of training: one's finding for all, or everyone's for all."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch.distributed as dist

Found = TypeVar("Found")


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if _many() else (0, 1)


def from_rank_0(make: Callable[[], Found]) -> Found:
    """What `make` gives on rank 0, on every rank: large files are then read once."""
    rank, _ = rank_and_world()
    told = [make() if rank == 0 else None]
    if _many():
        dist.broadcast_object_list(told, src=0)
    return told[0]  # type: ignore[return-value]  # every rank has rank 0's value here


def gathered(own: list[Found]) -> list[Found]:
    """The lists of all ranks, one after the other, on every rank."""
    if not _many():
        return own
    parts: list[list[Found]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, own)
    return [item for part in parts for item in part]


def too_long(tokens: Callable[[int], int], numbers: Iterable[int], limit: int) -> list[int]:
    """Which of `numbers` have more than `limit` tokens, in order; each rank looks at its share and all learn of it."""
    rank, world = rank_and_world()
    own = [number for number in list(numbers)[rank::world] if tokens(number) > limit]
    return sorted(gathered(own))


def _many() -> bool:
    return dist.is_available() and dist.is_initialized()
