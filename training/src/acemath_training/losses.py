"""Losses of outcome reward models on scores of whole responses.

`scores` and `labels` are flat over the problems of a batch; `sizes` says how many responses each problem
has, in order. Everything is computed in float32.

`listwise_bt` is AceMath's (arXiv 2412.15084, section 4.2; the same as Qwen2.5-Math's equation 1): for one
problem with k right and m wrong responses

    L = - 1 / (k m) * sum over all (right, wrong) pairs of log sigmoid(r_right - r_wrong)

where each response passed through the model once. It depends on differences only, so adding a constant to
all scores of a problem changes nothing.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Sequence[int]], Tensor]


def listwise_bt(scores: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean over problems of the mean over all right-wrong pairs of `-log sigmoid(difference)`.

    Args:
        scores: [N] scores.
        labels: [N], 1 for a right response and 0 for a wrong one.
        sizes: responses per problem; they add up to N.

    Raises:
        ValueError: when a problem has no right or no wrong response.
    """
    return torch.stack([pair_losses(*split).mean() for split in _split(scores, labels, sizes)]).mean()


def pairwise_bt(scores: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean over separate pairs: the i-th right response of a problem against its i-th wrong one.

    Raises:
        ValueError: when a problem has no right or no wrong response.
    """
    found = []
    for right, wrong in _split(scores, labels, sizes):
        count = min(len(right), len(wrong))
        found.append(-functional.logsigmoid(right[:count] - wrong[:count]))
    return torch.cat(found).mean()


def cross_entropy(scores: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Binary cross-entropy of each response's correctness; the score is the logit."""
    return functional.binary_cross_entropy_with_logits(scores.float(), labels.float())


def mse(scores: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean squared error against 1 for right and 0 for wrong."""
    return functional.mse_loss(scores.float(), labels.float())


def pair_losses(right: Tensor, wrong: Tensor) -> Tensor:
    """`-log sigmoid(right_i - wrong_j)` for all pairs; [k, m]."""
    return -functional.logsigmoid(right[:, None] - wrong[None, :])


LOSSES: dict[str, Loss] = {
    "listwise_bt": listwise_bt,
    "pairwise_bt": pairwise_bt,
    "cross_entropy": cross_entropy,
    "mse": mse,
}


def _split(scores: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    found = []
    for part, marks in zip(torch.split(scores.float(), list(sizes)), torch.split(labels, list(sizes)), strict=True):
        right, wrong = part[marks == 1], part[marks == 0]
        if not len(right) or not len(wrong):
            raise ValueError("each problem needs a right and a wrong response")
        found.append((right, wrong))
    return found
