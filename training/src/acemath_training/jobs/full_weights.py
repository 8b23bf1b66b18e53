"""A full-weight result as a complete checkpoint: weights, configs, tokenizer and chat template in one folder.

The next stage takes it as its base and the registry publishes it, so it is written under another name, checked, and
only then renamed: a folder with the final name is whole.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from acemath_prompts import PromptEncoder
from acemath_training.errors import CheckpointError, ConfigError
from acemath_training.jobs.shared_prefix import inner

DIRECTORY = "model"
"""The checkpoint's folder inside a job's output, beside the resumable checkpoints and the metrics."""

_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_CARRIED_OVER = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "LICENSE", "NOTICE"),
)


def resolve(base: Path) -> Path:
    """The checkpoint folder that `base` means: itself, or the result inside a finished stage's output.

    Raises:
        ConfigError: there is none.
    """
    found = base / DIRECTORY if (base / DIRECTORY / "config.json").is_file() else base
    missing = [name for name in _NEEDED if not (found / name).is_file()]
    if missing:
        raise ConfigError(
            f"{base} is neither a checkpoint nor the output of a finished full-weight stage: "
            f"it lacks {', '.join(missing)} (an adapter is given as model.parent)"
        )
    return found


def gather(trainer: Any) -> dict[str, Tensor] | None:
    """Every tensor of the trained model, whole, by its name in the wrapped model; None except on rank 0.

    Under ZeRO stage 3 each rank holds a part of each tensor, so all ranks must call this.
    """
    if trainer.deepspeed.zero_optimization_partition_weights():
        whole: dict[str, Tensor] | None = trainer.accelerator.get_state_dict(trainer.deepspeed)
        return whole
    return dict(trainer.model.state_dict()) if trainer.is_world_process_zero() else None


def prepare(model: Any, end_of_turn: int) -> None:
    """Make generation end at the end of a turn, as the rows do; a base that was no chat model ends elsewhere.

    Raises:
        ConfigError: the base's generation config is one that transformers would not write at the end of the run.
    """
    settings = model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if end_of_turn not in ends:
        settings.eos_token_id = [end_of_turn, *(end for end in ends if end is not None)]
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise ConfigError(f"the base's generation_config.json contradicts itself: {error}") from error


def save(wrapper: Any, values: dict[str, Tensor], base: Path, output: Path) -> Path:
    """Write `values` (from `gather`) as the checkpoint `output / DIRECTORY` and return it; rank 0 only.

    Args:
        wrapper: the trained module, whose `model` is the transformers model.
        values: its tensors, all whole.
        base: the checkpoint the job started from; tokenizer, template and licence are its.
        output: the job's folder.

    Raises:
        CheckpointError: what was written is not what the model holds.
    """
    partial, target = output / f".{DIRECTORY}-{os.getpid()}", output / DIRECTORY
    model = inner(wrapper.model)
    model.config.use_cache = True  # Trainer turns it off for the time of the training
    own = {name.removeprefix("model."): value for name, value in values.items()}
    model.save_pretrained(str(partial), state_dict=own)
    for name in _CARRIED_OVER:
        if (base / name).is_file():
            shutil.copyfile(base / name, partial / name)
    verify(partial, model)
    PromptEncoder.from_directory(partial)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return target


def verify(directory: Path, model: Any) -> None:
    """Compare names and shapes in the safetensors files of `directory` with the model's parameters.

    Raises:
        CheckpointError: a tensor is missing, not the model's, or of another shape (empty: never gathered).
    """
    written = _shapes(directory)
    # Under ZeRO stage 3 a parameter is an empty tensor that remembers its whole shape.
    wanted = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in model.named_parameters()}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    differ = [name for name, shape in wanted.items() if written.get(name) != shape]
    wrong = [f"{name} is {written.get(name, 'missing')}, not {wanted[name]}" for name in differ]
    wrong += [f"{name} is not the model's" for name in sorted(set(written) - known)]
    if wrong:
        raise CheckpointError(f"{directory} was not written whole ({len(wrong)} tensors): {'; '.join(wrong[:3])}")


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found
