"""A canary for a checkpoint that was trained elsewhere, as `acemath registry publish --metadata` takes it.

A job's own checkpoint gets its canary where it is delivered (`delivery`).
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from acemath_prompts import TemplateError
from acemath_registry.errors import RejectReason
from acemath_registry.facts import ARCHITECTURES, architecture_of
from acemath_registry.files import CONFIG_NAME
from acemath_registry.hub import download, is_hub_source
from acemath_registry.manifest import ADAPTER_CONFIG_NAME, ModelKind
from acemath_registry.progress import Progress, no_progress
from acemath_registry.tensors import read_json
from acemath_training.errors import PublishError
from acemath_training.progress import Teller

_OURS_ALONE: Final = "Qwen2ForRewardModel"
"""Plain transformers takes it for another class by its model_type, and leaves the head as it was made: at random."""


@contextmanager
def opened(source: str, progress: Progress = no_progress) -> Iterator[tuple[Path, str]]:
    """The directory of a checkpoint, and what names its content; one of the hub (`hf://owner/name@revision`) is there
    while the block runs, and is named by its commit.

    Raises:
        PublishError: there is no such directory.
        ServiceError: see `acemath_registry.hub.download`.
    """
    if not is_hub_source(source):
        if not Path(source).is_dir():
            raise PublishError(
                f"there is no directory {source}; give a checkpoint's folder, or hf://owner/name@revision"
            )
        yield Path(source), source
        return
    with tempfile.TemporaryDirectory(prefix="acemath-canary-") as folder:
        yield Path(folder), download(source, Path(folder), progress).source


def kind_of(checkpoint: Path) -> ModelKind:
    """What a checkpoint is published as.

    Raises:
        PublishError: it is no whole checkpoint, or plain transformers does not compute what it would be compared with.
        VerificationError: its config.json can not be read, or names an architecture that is not served.
    """
    if not (checkpoint / CONFIG_NAME).is_file():
        adapter = (checkpoint / ADAPTER_CONFIG_NAME).is_file()
        then = "give the folder of the merged model" if adapter else "give a checkpoint's folder"
        raise PublishError(f"{checkpoint} has no {CONFIG_NAME}{' (it is an adapter)' if adapter else ''}; {then}")
    architecture = architecture_of(read_json(checkpoint / CONFIG_NAME, RejectReason.CONFIG_MALFORMED))
    if architecture == _OURS_ALONE:
        said = "plain transformers has no such class, so that there is nothing to compare an engine with"
        raise PublishError(f"{architecture}: {said}; publish it without a canary")
    return ARCHITECTURES[architecture]


def metadata(checkpoint: Path, teller: Teller) -> dict[str, JsonValue]:
    """`{"canary": …, "tools": {package: version}}` of a whole checkpoint (no adapter), computed on the CPU.

    Raises:
        PublishError, VerificationError: as `kind_of`; or its tokenizer, template or weights can not be used.
    """
    kind = kind_of(checkpoint)
    from acemath_training.embedded import canary  # noqa: PLC0415 - torch and transformers

    compute = canary.policy if kind is ModelKind.POLICY else canary.reward
    try:
        with teller.step(f"computing the canary of {len(canary.cases())} conversations"):
            values = compute(checkpoint)
    except (TemplateError, OSError, ValueError, RuntimeError) as error:
        raise PublishError(f"the canary cannot be computed: {error}; mend the checkpoint") from error
    return {"canary": values, "tools": {name: version(name) for name in ("torch", "transformers", "safetensors")}}


def write(document: dict[str, JsonValue], out: Path) -> None:
    """Write it as JSON. Raises PublishError where that is refused."""
    try:
        out.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise PublishError(f"{out} cannot be written ({error.strerror}); give another --out") from error
