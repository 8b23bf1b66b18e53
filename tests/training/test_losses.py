"""The losses against slow references, finite differences, and their invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acemath_training import losses

values = st.floats(-8, 8, allow_nan=False, width=32)


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[float], list[int], list[int]]:
    """Scores, labels and sizes of one to three problems, each with a right and a wrong response."""
    scores, labels, sizes = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        right, wrong = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        marks = draw(st.permutations([1] * right + [0] * wrong))
        scores += draw(st.lists(values, min_size=right + wrong, max_size=right + wrong))
        labels += marks
        sizes.append(right + wrong)
    return scores, labels, sizes


def reference(scores: list[float], labels: list[int], sizes: list[int]) -> float:
    """The formula of the paper, written out."""
    total, start = 0.0, 0
    for size in sizes:
        part = list(zip(scores[start : start + size], labels[start : start + size], strict=True))
        right = [score for score, label in part if label]
        wrong = [score for score, label in part if not label]
        terms = [math.log1p(math.exp(-(good - bad))) for good in right for bad in wrong]
        total += sum(terms) / (len(right) * len(wrong))
        start += size
    return total / len(sizes)


@given(lists())
@settings(deadline=None, max_examples=60)
def test_listwise_is_the_papers_formula(case: tuple[list[float], list[int], list[int]]) -> None:
    scores, labels, sizes = case
    found = losses.listwise_bt(torch.tensor(scores), torch.tensor(labels), sizes)
    assert found.item() == pytest.approx(reference(scores, labels, sizes), rel=1e-4, abs=1e-5)


@given(lists(), st.floats(-20, 20))
@settings(deadline=None, max_examples=40)
def test_listwise_ignores_a_constant(case: tuple[list[float], list[int], list[int]], shift: float) -> None:
    scores, labels, sizes = case
    marks = torch.tensor(labels)
    plain = losses.listwise_bt(torch.tensor(scores, dtype=torch.float32), marks, sizes)
    shifted = losses.listwise_bt(torch.tensor(scores, dtype=torch.float32) + shift, marks, sizes)
    assert shifted.item() == pytest.approx(plain.item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_gradients_match_finite_differences(name: str) -> None:
    scores = torch.tensor([0.3, -1.2, 0.7, 2.0, -0.4], dtype=torch.float32, requires_grad=True)
    labels, sizes, step = torch.tensor([1, 0, 0, 1, 0]), [3, 2], 1e-2
    losses.LOSSES[name](scores, labels, sizes).backward()
    assert scores.grad is not None
    for index in range(len(scores)):
        up, down = scores.detach().clone(), scores.detach().clone()
        up[index] += step
        down[index] -= step
        change = losses.LOSSES[name](up, labels, sizes) - losses.LOSSES[name](down, labels, sizes)
        assert scores.grad[index].item() == pytest.approx(change.item() / (2 * step), abs=2e-3)


def test_pairwise_pairs_in_order() -> None:
    scores, labels = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([1, 0, 1])
    assert losses.pairwise_bt(scores, labels, [3]).item() == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-5)


def test_a_list_without_a_wrong_response_is_refused() -> None:
    with pytest.raises(ValueError, match="right and a wrong"):
        losses.listwise_bt(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]), [2])
