"""Which weight of the base each pair of LoRA matrices changes; names, shapes and dtypes have to fit without a rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from acemath_registry.adapters.config import LoraSettings
from acemath_registry.errors import RejectReason, VerificationError
from acemath_registry.manifest import ADAPTER_WEIGHTS_NAME
from acemath_registry.tensors import Tensor

FLOATS: Final = frozenset({"BF16", "F16", "F32"})
"""Formats of which two numbers have an exact product in float64."""

_KEY: Final = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
_LINEAR: Final = re.compile(r"model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)")
_WEIGHT: Final = ".weight"


@dataclass(frozen=True, slots=True)
class Change:
    """One linear layer, as the headers describe it.

    Attributes:
        weight: W of the base, (out, in).
        down: A, (rank, in).
        up: B, (out, rank).
    """

    weight: Tensor
    down: Tensor
    up: Tensor


def fit(lora: LoraSettings, adapter: list[Tensor], base: list[Tensor]) -> dict[str, Change]:
    """Name of each changed weight of the base → its matrices.

    Args:
        lora: what the adapter's config says.
        adapter: the tensors of `adapter_model.safetensors`.
        base: the tensors of the base version.

    Raises:
        VerificationError: ADAPTER_UNSUPPORTED for a tensor that is no LoRA of a linear layer of attention or MLP,
            ADAPTER_MISFIT for one that is missing, surplus, or of another shape or dtype than the base asks for.
    """
    weights = {tensor.name: tensor for tensor in base}
    halves = _halves(adapter)
    layers = {layer for layer, _ in halves}
    _check_targets(lora.targets, layers, weights)
    changes: dict[str, Change] = {}
    for layer in sorted(layers):
        for part in "AB":
            if (layer, part) not in halves:
                raise _misfit(f"{layer} has no lora_{part}; save the adapter again")
        change = Change(weights[layer + _WEIGHT], halves[layer, "A"], halves[layer, "B"])
        _check(change, lora.rank)
        changes[layer + _WEIGHT] = change
    return changes


def _halves(adapter: list[Tensor]) -> dict[tuple[str, str], Tensor]:
    found = {}
    for tensor in adapter:
        parsed = _KEY.fullmatch(tensor.name)
        if parsed is None or not _LINEAR.fullmatch(parsed["layer"]):
            raise VerificationError(
                RejectReason.ADAPTER_UNSUPPORTED,
                f"tensor {tensor.name} is no LoRA of a linear layer of attention or MLP; merge it first, then publish",
                file=ADAPTER_WEIGHTS_NAME,
            )
        found[parsed["layer"], parsed["part"]] = tensor
    return found


def _check_targets(targets: tuple[str, ...], layers: set[str], weights: Mapping[str, Tensor]) -> None:
    """Every layer that the config names has its matrices, and no other: a lost tensor would change the model."""
    modules = [name.removesuffix(_WEIGHT) for name in weights if name.endswith(_WEIGHT)]
    expected: set[str] = set()
    for target in targets:
        named = {module for module in modules if module == target or module.endswith(f".{target}")}
        if not named:
            raise _misfit(f"the base has no layer {target}, which target_modules names; name the right base")
        expected |= named
    for layer in sorted(layers - expected):
        raise _misfit(f"{layer} is not a layer of the base that target_modules names; name the right base")
    for layer in sorted(expected - layers):
        raise _misfit(f"there are no matrices for {layer}, which target_modules names; save the adapter again")


def _check(change: Change, rank: int) -> None:
    weight = change.weight
    if len(weight.shape) != 2 or not weight.elements:
        raise _misfit(f"{weight.name} of the base has shape {list(weight.shape)}, which is no linear layer's")
    rows, columns = weight.shape
    for tensor, shape in ((change.down, (rank, columns)), (change.up, (rows, rank))):
        if tensor.shape != shape:
            raise _misfit(f"{tensor.name} has shape {list(tensor.shape)}, the base asks for {list(shape)}")
    for tensor in (change.down, change.up, weight):
        if tensor.dtype not in FLOATS:
            raise _misfit(f"{tensor.name} is {tensor.dtype}; merged are {', '.join(sorted(FLOATS))}")


def _misfit(detail: str) -> VerificationError:
    return VerificationError(RejectReason.ADAPTER_MISFIT, detail, file=ADAPTER_WEIGHTS_NAME)
