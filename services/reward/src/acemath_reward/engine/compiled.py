"""`elementwise.Elementwise` on a CPU, by the compiled loops of `kernels`."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

from acemath_reward.engine import kernels
from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.device import Placement
from acemath_reward.engine.elementwise import rotary_tables

_log = logging.getLogger(__name__)


class CompiledLoops:
    """The interface in machine code for this CPU: every number is read once and written once.

    The rotation is rounded once, not after each multiplication. The loops run on the calling thread, whatever the
    number of torch's threads.

    Args:
        config: shapes and constants.
        placement: the format; bfloat16 or float32.
    """

    def __init__(self, config: EngineConfig, placement: Placement) -> None:
        self._eps, self._bits = config.norm_eps, placement.dtype is torch.bfloat16
        self._loops = _compile(str(placement.dtype).removeprefix("torch."))
        self._half = config.head_dim // 2
        self._tables = tuple(table.float().flatten().numpy() for table in rotary_tables(config, placement.dtype))

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """See the interface, as for all that follows."""
        out = torch.empty_like(x)
        self._loops[0](self._flat(x), self._flat(weight), self._eps, self._flat(out))
        return out

    def put_queries(self, heads: Tensor, positions: Tensor, out: Tensor, first: int) -> None:
        """In one trip."""
        assert len(positions) == len(heads) <= out.shape[1] - first, "the loops do not ask whether there is room"
        here, there, places = self._flat(heads), self._flat(out), positions.numpy()
        self._loops[1](here, heads.shape[1], places, *self._tables, self._half, there, *out.shape[:3], first)

    def put_keys_and_values(self, heads: Tensor, positions: Tensor, out: Tensor, first: int) -> None:
        """In one trip."""
        assert len(positions) == len(heads) <= len(out) - first, "the loops do not ask whether there is room"
        here, there, places = self._flat(heads), self._flat(out), positions.numpy()
        self._loops[2](here, heads.shape[1], places, *self._tables, self._half, there, out.shape[2], first)

    def _flat(self, tensor: Tensor) -> Any:
        """The same memory as numpy sees it, which has no bfloat16.

        Raises:
            RuntimeError: the tensor is not contiguous.
        """
        flat = tensor.view(-1)
        return (flat.view(torch.uint16) if self._bits else flat).numpy()


@cache
def _compile(format_name: str) -> tuple[Any, Any, Any]:
    """The loops for a format; a second on the first call in a process."""
    started = time.monotonic()
    loops = (
        kernels.make_norm(format_name),
        kernels.make_put_queries(format_name),
        kernels.make_put_keys_and_values(format_name),
    )
    _log.info("compiled the %s loops for this CPU in %.1f s", format_name, time.monotonic() - started)
    return loops
