"""Digests of what a job's rows are made of, beside its configuration.

Two runs of one configuration see the same rows only if the files are the same too; the guard of checkpoints
compares these digests before a run is continued.
"""

import hashlib
from importlib import metadata, resources
from pathlib import Path

from acemath_training.data import gsm_symbolic, word_problems
from acemath_training.errors import DataError
from acemath_training.jobs.config import RewardConfig, SftConfig

_OF_THE_BASE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PACKAGE = "acemath_training.data"


def digests(config: SftConfig | RewardConfig, work_dir: Path, base: Path) -> dict[str, str]:
    """sha256 by name: the data files, the base's tokenizer and template, and the packaged data that is drawn from.

    Args:
        config: the job; its relative file names start from `work_dir`.
        work_dir: the folder above the job's output.
        base: the checkpoint that the job starts from.

    Raises:
        DataError: a file cannot be read.
    """
    found = {f"data file {name}": _sha256(work_dir / name) for name in _files(config)}
    found |= {f"the base's {name}": _sha256(base / name) for name in _OF_THE_BASE if (base / name).is_file()}
    return found | (_packaged(config) if isinstance(config, SftConfig) else {})


def _files(config: SftConfig | RewardConfig) -> list[Path]:
    if isinstance(config, RewardConfig):
        return [config.data.file, *config.data.more]
    of_sources = [source.file for source in config.data.mixture]
    return [name for name in (config.data.file, *of_sources) if name is not None]


def _packaged(config: SftConfig) -> dict[str, str]:
    """Of a mixture only: the split, the templates its sources name, the version of the package with the others."""
    if not config.data.mixture:
        return {}
    folder = resources.files(_PACKAGE)
    found = {"splits.json": hashlib.sha256((folder / "splits.json").read_bytes()).hexdigest()}
    for source in config.data.mixture:
        if source.kind == word_problems.SOURCE:
            for name in source.templates or word_problems.FILES:
                content = (folder / "templates" / name).read_bytes()
                found[f"template file {name}"] = hashlib.sha256(content).hexdigest()
        if source.kind == gsm_symbolic.SOURCE:
            found["reasoning-gym"] = metadata.version("reasoning-gym")
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
