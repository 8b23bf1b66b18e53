"""A job's file before a subcommand works on it: its kind, its mixture, and mistakes in one sentence."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from acemath_core.errors import ServiceError
from acemath_training.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from acemath_training.jobs.config import CandidatesConfig, RewardConfig, SftConfig, SftData

_OF_TRAINING = ("deepspeed", "peft", "reasoning_gym")  # what `make setup-train` adds to `make setup`


@contextmanager
def errors_in_one_sentence() -> Iterator[None]:
    """Print an error of ours, or a package of the training environment that is missing, and end with status 1."""
    try:
        yield
    except TrainingError as error:
        raise _ended(str(error)) from error
    except ServiceError as error:
        raise _ended(error.message) from error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0].startswith("acemath"):
            raise
        raise _ended(_needs_training([error.name])) from error


def check_environment() -> None:
    """Look for the packages that a job imports, before processes are started for it.

    Raises:
        TrainingError: one is missing.
    """
    missing = [name for name in _OF_TRAINING if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(_needs_training(missing))


def load_job(path: Path) -> "SftConfig | RewardConfig | CandidatesConfig":
    """The job that a file describes, whatever its kind.

    Raises:
        ConfigError: it is no text, no mapping, names no job, or a key is wrong.
    """
    from acemath_training.jobs import config as configs  # noqa: PLC0415 - the command line must start fast

    job = _document(path).get("job")
    if job == "sft":
        return configs.load(path, configs.SftConfig)
    if job == "reward_model":
        return configs.load(path, configs.RewardConfig)
    if job == "candidates":
        return configs.load(path, configs.CandidatesConfig)
    raise ConfigError(f"{path.name}: job: must be sft, reward_model or candidates, not {job!r}")


def mixture_of(path: Path) -> "SftData":
    """The data of a job that draws from a mixture.

    Raises:
        ConfigError: the job reads a file instead, or the file is not a job's.
    """
    data = load_job(path).data
    if data.file is not None:
        raise ConfigError(f"{path.name} reads {data.file}; there is no mixture to draw from")
    return data


def _document(path: Path) -> dict[str, object]:
    import yaml  # noqa: PLC0415

    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8; give a job's YAML file") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        what = "is empty" if document is None else "is no mapping of names to values"
        raise ConfigError(f"{path.name} {what}; a job begins with `job: sft` (or reward_model, or candidates)")
    return document


def _needs_training(missing: list[str]) -> str:
    return f"this needs the training environment: make setup-train ({', '.join(missing)} is not installed)"


def _ended(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)
