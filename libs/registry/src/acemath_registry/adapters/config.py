"""What PEFT's `adapter_config.json` asks for: a plain LoRA, which is merged exactly; all else is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from acemath_registry.errors import RejectReason, VerificationError
from acemath_registry.manifest import ADAPTER_CONFIG_NAME
from acemath_registry.tensors import read_json

_SAYS_NOTHING: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
"""Keys that change training, or another kind of adapter that has a switch of its own; never what is merged."""

_EXPECTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # the others (pissa, olora, …) change the base's own weights
    "use_rslora": (True, False),
}
_READ: Final = frozenset({"r", "lora_alpha", "target_modules"})
_LARGEST: Final = 2**20


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A LoRA: W + scaling · B A (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: rows of A and columns of B.
        scaling: alpha / r, or alpha / sqrt(r) with `use_rslora`.
        targets: names, or ends of names, of the layers that have an adapter.
    """

    rank: int
    scaling: float
    targets: tuple[str, ...]


def read_lora(path: Path) -> LoraSettings:
    """The settings in an `adapter_config.json`.

    Raises:
        VerificationError: ADAPTER_MALFORMED, or ADAPTER_UNSUPPORTED with the key that asks for something else.
        StorageError: it can not be read.
    """
    config = read_json(path, RejectReason.ADAPTER_MALFORMED)
    for key, value in sorted(config.items()):
        if not _understood(key, value):
            detail = f"{key} is {value!r}; only plain LoRA on linear layers is merged: train without it, or merge first"
            raise _reject(RejectReason.ADAPTER_UNSUPPORTED, detail)
    if "peft_type" not in config:
        raise _reject(RejectReason.ADAPTER_MALFORMED, "says no peft_type; save the adapter with PEFT")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (_whole(rank) and 0 < rank <= _LARGEST) or not (_number(alpha) and abs(alpha) <= _LARGEST):
        detail = f"r is {rank!r} and lora_alpha {alpha!r}; r is a positive whole number, lora_alpha a number"
        raise _reject(RejectReason.ADAPTER_MALFORMED, detail)
    divisor = math.sqrt(rank) if config.get("use_rslora") else float(rank)
    return LoraSettings(rank, float(alpha) / divisor, _targets(config.get("target_modules")))


def _whole(value: Any) -> TypeGuard[int]:
    return type(value) is int


def _number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float)


def _understood(key: str, value: Any) -> bool:
    if key in _EXPECTED:
        return any(value is one or (isinstance(one, str) and value == one) for one in _EXPECTED[key])
    return key in _SAYS_NOTHING or key in _READ or value is None or value is False or value in ({}, [])


def _targets(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        detail = f"target_modules is {value!r}; give the layers' names as a list, so that a lost tensor is noticed"
        raise _reject(RejectReason.ADAPTER_UNSUPPORTED, detail)
    return tuple(value)


def _reject(reason: RejectReason, detail: str) -> VerificationError:
    return VerificationError(reason, detail, file=ADAPTER_CONFIG_NAME)
