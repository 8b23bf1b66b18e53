"""One YAML file per job, validated: an unknown key is an error, and the resolved form is stored with the run."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acemath_training.data.mixture import Source
from acemath_training.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every part of a job's configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(Section):
    """Low-rank adapters on every linear layer of the blocks (Hu et al., arXiv 2106.09685)."""

    r: Positive
    alpha: Rate


class ModelSection(Section):
    """What is trained: the checkpoint, an earlier adapter to continue from, full weights or LoRA."""

    base: str
    parent: Path | None = None
    lora: Lora | None = None


class Optimizer(Section):
    """AdamW and its schedule; sizes are per optimizer step over all ranks."""

    learning_rate: Rate
    schedule: Literal["constant_with_warmup", "cosine", "linear"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta2: Fraction = 0.999
    max_grad_norm: Rate = 1.0
    rows_per_device: Positive
    gradient_accumulation: Positive = 1
    max_steps: Annotated[int, Field(gt=0)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    save_steps: Positive = 50
    gradient_checkpointing: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _one_length(self) -> "Optimizer":
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of max_steps and epochs")
        return self


class DeepSpeed(Section):
    """The part of DeepSpeed's configuration that differs between jobs."""

    zero_stage: Literal[1, 2, 3] = 2
    bf16: bool = True


class SftData(Section):
    """A generated mixture, or a file of conversations (`messages` in JSON Lines, as AceMath's sets)."""

    mixture: tuple[Source, ...] = ()
    file: Path | None = None
    seed: int = 0
    cursor: Annotated[int, Field(ge=0)] = 0
    max_length: Positive = 512

    @model_validator(mode="after")
    def _one_source(self) -> "SftData":
        if bool(self.mixture) == (self.file is not None):
            raise ValueError("give exactly one of mixture and file")
        return self


class RewardData(Section):
    """Labelled candidates of `data.candidates`, and how responses are drawn from them.

    `file` is the newest sampling; `more` are earlier ones, used beside it.
    """

    file: Path
    more: tuple[Path, ...] = ()
    responses_per_problem: Annotated[int, Field(ge=2)] = 6
    sampling: Literal["score_sorted", "random"] = "score_sorted"
    top_k: Positive = 14
    validation_fraction: Fraction = 0.1
    max_length: Positive = 512
    seed: int = 0


class SftConfig(Section):
    """A supervised fine-tuning job."""

    job: Literal["sft"]
    stage: str
    model: ModelSection
    data: SftData
    training: Optimizer
    deepspeed: DeepSpeed = DeepSpeed()


class RewardConfig(Section):
    """A reward-model job."""

    job: Literal["reward_model"]
    stage: str
    loss: Literal["listwise_bt", "pairwise_bt", "cross_entropy", "mse"] = "listwise_bt"
    model: ModelSection
    data: RewardData
    training: Optimizer
    deepspeed: DeepSpeed = DeepSpeed()

    @model_validator(mode="after")
    def _supported(self) -> "RewardConfig":
        if self.deepspeed.zero_stage == 3:
            raise ValueError("the reward head is read outside a module, which ZeRO stage 3 cannot gather; use 2")
        if self.training.gradient_checkpointing:
            raise ValueError("a reward job shares each problem's keys and values; it has no gradient checkpointing")
        if self.training.rows_per_device != 1:
            raise ValueError("rows_per_device must be 1: a micro-batch is one problem with all its responses")
        return self


class CandidatesConfig(Section):
    """Sampling of candidates by the policy of an SFT stage."""

    job: Literal["candidates"]
    policy: str
    file: Path
    problems: Positive
    n: Positive = 8
    temperature: Rate = 0.9
    max_tokens: Positive = 200
    max_minutes: Rate = 60.0
    seed: int = 0
    data: SftData


JobConfig = TypeVar("JobConfig", SftConfig, RewardConfig, CandidatesConfig)


def load(path: Path, kind: type[JobConfig]) -> JobConfig:
    """Read and validate a job's YAML file.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, missing or wrong; all are listed.
    """
    try:
        return kind.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{path.name}: {found}") from error


def fingerprint(config: Section) -> str:
    """sha256 of the resolved configuration: two runs with one fingerprint were asked to do the same."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def deepspeed_dict(section: DeepSpeed) -> dict[str, object]:
    """DeepSpeed's own configuration; `auto` values are filled in by transformers from its arguments."""
    zero: dict[str, object] = {"stage": section.zero_stage, "overlap_comm": False}
    if section.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": section.bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
