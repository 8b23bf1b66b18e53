"""The head that turns a last row into a score: float32, each row by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

RowNorm = Callable[[Tensor], Tensor]
"""The model's last norm, of one row `[hidden]`."""


class LinearHead:
    """One linear map to one label, without a bias.

    The head keeps the precision it is stored in: bfloat16 scores around 6 come in steps of 0.03. And it takes one row
    at a time: a matrix product over all of them would change bits with their number.

    Args:
        norm: the model's last norm.
        weight: `[1, hidden]`, float32.
    """

    def __init__(self, norm: RowNorm, weight: Tensor) -> None:
        self._norm, self._weight = norm, weight[0]

    def __call__(self, row: Tensor) -> Tensor:
        """The score of a row `[hidden]` of the residual stream: a float32 scalar."""
        return (self._norm(row).float() * self._weight).sum()


class MlpHead:
    """Two linear maps with a ReLU between them (`Qwen2ForRewardModel`: Qwen2.5-Math-RM).

    Args:
        norm: the model's last norm.
        tensors: float32, by the checkpoint's names: `score.0.weight` `[hidden, hidden]`, `score.0.bias` `[hidden]`,
            `score.2.weight` `[1, hidden]`, `score.2.bias` `[1]`.
    """

    def __init__(self, norm: RowNorm, tensors: Mapping[str, Tensor]) -> None:
        self._norm = norm
        self._first = tensors["score.0.weight"], tensors["score.0.bias"]
        self._second = tensors["score.2.weight"][0], tensors["score.2.bias"][0]

    def __call__(self, row: Tensor) -> Tensor:
        """As `LinearHead`."""
        inner = torch.relu(F.linear(self._norm(row).float()[None], *self._first)[0])
        return (inner * self._second[0]).sum() + self._second[1]
