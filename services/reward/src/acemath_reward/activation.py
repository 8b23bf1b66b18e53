"""What vLLM makes of a one-label head: the label's name and the function that turns its logit into a "probability".

The rules are those of vLLM 0.32, `model_executor/layers/pooler/activations.py`: `problem_type` first, then what
sentence-transformers and its older cross-encoders write into `config.json`, else the sigmoid.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acemath_core.errors import InvalidRequest

_BY_PROBLEM_TYPE = {
    "regression": "Identity",
    "single_label_classification": "Sigmoid",
    "multi_label_classification": "Sigmoid",
}
_MODULES = "torch.nn.modules."
_LOWEST = -700.0  # exp() of more than 709 overflows; the sigmoid is 0 in float32 long before


@dataclass(frozen=True, slots=True)
class Head:
    """A checkpoint's one-label head as vLLM shows it.

    Attributes:
        label: name of the label (`id2label`), or None where the checkpoint names none under 0.
        activation: the function that vLLM applies unless asked not to; a class of `torch.nn`.
    """

    label: str | None = "LABEL_0"
    activation: str = "Sigmoid"

    @classmethod
    def from_config(cls, document: Mapping[str, Any]) -> Head:
        """The head that a `config.json` document describes."""
        labels = document.get("id2label")
        label = labels.get("0") if isinstance(labels, dict) else "LABEL_0"
        return cls(label if isinstance(label, str) else None, _activation(document))

    def value(self, score: float, use_activation: bool | None) -> float:
        """The number a client gets for a raw score.

        Args:
            score: the raw float32 logit.
            use_activation: False gives the logit; None and True apply the checkpoint's function, as vLLM does.

        Raises:
            InvalidRequest: the checkpoint names a function other than the identity and the sigmoid.
        """
        if use_activation is False or self.activation == "Identity":
            return score
        if self.activation != "Sigmoid":
            raise InvalidRequest(
                f"this checkpoint asks for the activation {self.activation}, which is not implemented; "
                "send use_activation=false for the raw score",
                param="use_activation",
            )
        return _float32(1.0 / (1.0 + math.exp(-max(score, _LOWEST))))


def _activation(document: Mapping[str, Any]) -> str:
    problem_type = document.get("problem_type")
    if problem_type in _BY_PROBLEM_TYPE:
        return _BY_PROBLEM_TYPE[problem_type]
    options = document.get("sentence_transformers")
    named = options.get("activation_fn") if isinstance(options, dict) else None
    named = named or document.get("sbert_ce_default_activation_function")
    if named is None:
        return "Sigmoid"
    function = str(named).rpartition(".")[2] if str(named).startswith(_MODULES) else str(named)
    return "Sigmoid" if function == "Softmax" else function  # vLLM: a softmax over one label is meant as the sigmoid


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
