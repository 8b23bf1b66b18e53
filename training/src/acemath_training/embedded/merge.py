"""Adapters merged into full checkpoints: W + (alpha / r) · B A, in float64, rounded once to bf16.

float64 makes the rounded result independent of a machine's summation order, so the same adapter gives the
same bytes, and with them the same version, everywhere.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from acemath_training.architecture import END_OF_TURN, LANGUAGE, language_model
from acemath_training.embedded.base_model import sha256
from acemath_training.embedded.cards import WEIGHTS
from acemath_training.errors import PublishError

_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_HEAD = "score.weight"
_WRITING_HEAD = "lm_head.weight"
_GENERATION = "generation_config.json"


def policy(base: Path, adapter: Path, target: Path) -> Path:
    """A checkpoint of the base's architecture, of base and adapter, in `target`; generation ends at a turn's end."""
    written = _write(base, target, merged(base, adapter), _config(base), with_generation=True)
    _end_at_turns(written)
    return written


def reward(base: Path, adapter: Path, target: Path) -> Path:
    """A sequence-classification checkpoint of the base's kind with one label in `target`.

    Raises:
        PublishError: when the adapter has no score head, or the base is no model of language.
    """
    tensors = merged(base, adapter)
    if _HEAD not in tensors:
        raise PublishError(f"{adapter / WEIGHTS} has no {_HEAD}")
    tensors.pop(_WRITING_HEAD, None)  # where it is not the embedding; a score needs none, and servers refuse it
    config = _config(base) | {
        "architectures": [language_model(base).removesuffix(LANGUAGE) + "ForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    return _write(base, target, tensors, config, with_generation=False)


def merged(base: Path, adapter: Path) -> dict[str, Tensor]:
    """All tensors of the base with the adapter added; tensors that are no LoRA part are taken as they are.

    Raises:
        PublishError: when an adapter tensor has no counterpart in the base.
    """
    tensors: dict[str, Tensor] = {}
    for part in sorted(base.glob("*.safetensors")):
        tensors |= load_file(str(part))
    values = load_file(str(adapter / WEIGHTS))
    settings = json.loads((adapter / "config.json").read_text("utf-8"))
    scale = float(settings["alpha"]) / float(settings["r"])
    for name, up in values.items():
        if name.endswith(".lora_B"):
            module = name.removesuffix(".lora_B")
            _add(tensors, f"{module}.weight", values[f"{module}.lora_A"], up, scale)
        elif not name.endswith(".lora_A"):
            tensors[name] = up.to(torch.bfloat16)
    return tensors


def _add(tensors: dict[str, Tensor], name: str, down: Tensor, up: Tensor, scale: float) -> None:
    if name not in tensors:
        raise PublishError(f"the base has no {name} for the adapter to change")
    change = up.double() @ down.double()
    tensors[name] = (tensors[name].double() + scale * change).to(torch.bfloat16)


def _config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text("utf-8"))
    config.pop("_model_name_or_path", None)
    return config


def _write(
    base: Path, target: Path, tensors: dict[str, Tensor], config: dict[str, Any], *, with_generation: bool
) -> Path:
    target.mkdir(parents=True)
    save_file(dict(sorted(tensors.items())), str(target / "model.safetensors"), metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in (*_COPIED, *((_GENERATION,) if with_generation else ())):
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    return target


def _end_at_turns(checkpoint: Path) -> None:
    """Add the end of a turn, which the rows taught, to what ends generation: a base that was no chat model lacks it."""
    end = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).token_to_id(END_OF_TURN)
    file = checkpoint / _GENERATION
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    known = settings.get("eos_token_id")
    ends = known if isinstance(known, list) else [known]
    if end is not None and end not in ends:
        settings["eos_token_id"] = [end, *(one for one in ends if one is not None)]
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def digest(adapter: Path) -> str:
    """sha256 over the files that decide the merged checkpoint."""
    return f"{sha256(adapter / WEIGHTS)}:{sha256(adapter / 'config.json')}"
