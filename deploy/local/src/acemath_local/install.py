"""Makes `.venv` from the pinned files and installs our distributions editable; does nothing when nothing changed.

Standard library only: `python -m acemath_local.install {cpu,train,dev}` runs with the machine's own Python. It may be
interrupted at any moment: the stamp in `.venv` says what is whole, and the next call does the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acemath_local.console import Console, Step
from acemath_local.preflight import SETUP_GIB, Finding, check_compiler, check_disk, machine_checks
from acemath_local.settings import process_environment

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISTRIBUTIONS = (
    "libs/core", "libs/web", "libs/prompts", "libs/answers", "libs/registry",
    "services/gateway", "services/policy", "services/reward",
    "training", "evaluation", "cli", "deploy/local",
)  # fmt: skip
_STAMP = "acemath-installed.json"
_PIP_VERSION = ["-m", "pip", "--version"]
_ASIDES = ("WARNING:", "DEPRECATION:", "[notice]")  # of pip's: in the log, but neither progress nor the cause of an end


class InstallError(Exception):
    """A step failed; the message says which, and where its output is."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where an installation reads and writes."""

    root: Path

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """Written once pip answers in it, and after every step: what is installed."""
        return self.venv / _STAMP

    @property
    def log(self) -> Path:
        """What pip printed."""
        return self.root / ".local" / "logs" / "setup.log"

    def requirements(self, name: str) -> Path:
        """A pinned file."""
        return self.root / "requirements" / f"{name}.txt"

    def distributions(self) -> list[Path]:
        """Our own distributions, in dependency order."""
        return [self.root / name for name in DISTRIBUTIONS if (self.root / name / "pyproject.toml").exists()]


def wanted(paths: Paths, profile: str) -> dict[str, str]:
    """What should be installed: name of each pinned file (and of our own metadata) → sha256 of its content."""
    names = ["torch-cpu", "cpu"] if profile == "cpu" else ["torch-cpu", "cpu", profile]
    digests = {name: _digest([paths.requirements(name)]) for name in names}
    digests["distributions"] = _digest([path / "pyproject.toml" for path in paths.distributions()])
    return digests


def installed(paths: Paths) -> dict[str, str]:
    """What the last complete steps left; empty for a new or half-made environment."""
    try:
        stamp: dict[str, str] = json.loads(paths.stamp.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if paths.python.exists() else {}


def install(paths: Paths, profile: str, console: Console) -> bool:
    """Bring `.venv` to a profile; True when something had to be done.

    Raises:
        InstallError: the machine lacks something, or a step failed.
    """
    if profile == "train":  # also where all is installed: make embedded asks this before it begins its hours
        _refuse([check_compiler()])
    missing = {name: digest for name, digest in wanted(paths, profile).items() if installed(paths).get(name) != digest}
    if not missing:
        return False
    _refuse([*machine_checks(), check_disk(paths.root, SETUP_GIB if "torch-cpu" in missing else 1.0)])
    paths.log.parent.mkdir(parents=True, exist_ok=True)
    if not (paths.python.exists() and paths.stamp.exists()):  # venv links the interpreter first, and pip comes last
        _make_venv(paths, console)
    _tidy(paths)
    for name, digest in missing.items():
        _install_one(paths, name, console)
        _write_stamp(paths, installed(paths) | {name: digest})
    return True


def _make_venv(paths: Paths, console: Console) -> None:
    paths.stamp.unlink(missing_ok=True)
    with console.step("making .venv"):
        try:
            venv.create(paths.venv, with_pip=True, clear=True, symlinks=True)
        except subprocess.CalledProcessError as error:
            raise InstallError(f"making .venv failed: {error.output or error}") from error
        answer = subprocess.run([paths.python, *_PIP_VERSION], capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise InstallError(f"making .venv failed: {answer.stderr.strip() or 'pip does not answer'}")
    _write_stamp(paths, {})


def _tidy(paths: Paths) -> None:
    """Make pip forget what an interrupted pip left.

    It writes RECORD last, but takes any METADATA for an installed package; and it moves what it replaces to `~name`.
    """
    for site in (paths.venv / "lib").glob("python*/site-packages"):
        half = [path for path in site.glob("*.dist-info") if not (path / "RECORD").exists()]
        for path in (*half, *site.glob("~*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _refuse(findings: list[Finding]) -> None:
    advice = [finding.advice for finding in findings if not finding.ok]
    if advice:
        raise InstallError("; ".join(advice))


def _install_one(paths: Paths, name: str, console: Console) -> None:
    if name == "torch-cpu":
        _install_torch(paths, console)
    elif name == "distributions":
        editable = [argument for path in paths.distributions() for argument in ("--editable", str(path))]
        _pip(paths, console, "installing the AceMath distributions", ["--no-build-isolation", *editable])
    else:
        pinned = str(paths.requirements(name))
        count = paths.requirements(name).read_text().count("==")
        title = f"installing requirements/{name}.txt ({count} pinned packages)"
        _pip(paths, console, title, ["--no-build-isolation", "--require-hashes", "--requirement", pinned])


def _install_torch(paths: Paths, console: Console) -> None:
    title, pinned = (
        "installing torch (CPU build, about 200 MB)",
        ["--requirement", str(paths.requirements("torch-cpu"))],
    )
    index = process_environment().get("TORCH_CPU_INDEX", TORCH_CPU_INDEX)
    with console.step(title) as step:
        first = _run_pip(paths, step, pinned)  # a mirror or a folder of wheels that pip is set to may have it
        if not first:
            return
        absent = "No matching distribution" in first
        why = "CPU builds are not on the index that pip is set to" if absent else f"pip by itself: {first}"
        console.line(f"    {why}; taking it from {index}")
        last = _run_pip(paths, step, ["--index-url", index, *pinned])
        if last:
            raise InstallError(f"{title} failed: {last} (pip's output for both places: {paths.log})")


def _pip(paths: Paths, console: Console, title: str, arguments: list[str]) -> None:
    with console.step(title) as step:
        last = _run_pip(paths, step, arguments)
        if last:
            raise InstallError(f"{title} failed: {last} (all of pip's output: {paths.log})")


def _run_pip(paths: Paths, step: Step, arguments: list[str]) -> str:
    """Empty when pip installed everything, else what it said last."""
    tether = [sys.executable, "-m", "acemath_local.tether", f"TERM:{os.getpid()}", "--"]  # no pip goes on alone
    pip = [str(paths.python), "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    with (
        paths.log.open("a") as log,
        subprocess.Popen(
            [*tether, *pip, *arguments], text=True, cwd=paths.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        last = ""
        try:
            for line in process.stdout or ():
                log.write(line)
                if line.strip() and not line.lstrip().startswith(_ASIDES):
                    last = line.strip()
                step.note = " ".join(last.split()[:2])[:40]
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        code = process.wait()
    return "" if code == 0 else last or f"pip ended with {code}"


def _write_stamp(paths: Paths, document: dict[str, str]) -> None:
    new = paths.stamp.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1))
    new.replace(paths.stamp)


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()


@contextmanager
def _alone(paths: Paths, console: Console) -> Iterator[None]:
    lock = paths.root / ".local" / "setup.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with console.step("waiting for another set-up of this checkout"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run as `python -m acemath_local.install [cpu|train|dev]` in the checkout's root."""
    profile = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    console, paths = Console(), Paths(Path.cwd())
    if profile not in ("cpu", "train", "dev") or not paths.requirements("cpu").exists():
        console.line("✗ usage, in the root of the checkout: python -m acemath_local.install [cpu|train|dev]")
        return 2
    try:
        with _alone(paths, console):
            install(paths, profile, console)
    except InstallError as error:
        console.line(f"✗ {error}")
        return 1
    except KeyboardInterrupt:
        console.line("stopped: the same command again goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
