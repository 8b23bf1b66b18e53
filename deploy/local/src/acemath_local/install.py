"""Makes `.venv` from the pinned files and installs our distributions editable; does nothing when nothing changed.

Standard library only: `python -m acemath_local.install {cpu,dev}` runs with the machine's own Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acemath_local.console import Console
from acemath_local.preflight import SETUP_GIB, Finding, check_compiler, check_disk, machine_checks
from acemath_local.settings import process_environment

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISTRIBUTIONS = (
    "libs/core", "libs/web", "libs/prompts", "libs/answers", "libs/registry",
    "services/gateway", "services/policy", "services/reward",
    "training", "evaluation", "cli", "deploy/local",
)  # fmt: skip
_STAMP = "acemath-installed.json"


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
        stamp: dict[str, str] = json.loads((paths.venv / _STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if paths.python.exists() else {}


def install(paths: Paths, profile: str, console: Console) -> bool:
    """Bring `.venv` to a profile; True when something had to be done.

    Raises:
        InstallError: the machine lacks something, or a step failed.
    """
    missing = {name: digest for name, digest in wanted(paths, profile).items() if installed(paths).get(name) != digest}
    if not missing:
        return False
    _refuse([*machine_checks(), check_disk(paths.root, SETUP_GIB if "torch-cpu" in missing else 1.0)])
    if profile == "dev":
        _refuse([check_compiler()])
    paths.log.parent.mkdir(parents=True, exist_ok=True)
    if not paths.python.exists():
        with console.step("making .venv"):
            venv.create(paths.venv, with_pip=True, clear=True, symlinks=True)
    for name, digest in missing.items():
        _install_one(paths, name, console)
        _stamp(paths, name, digest)
    return True


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
    pinned = ["--requirement", str(paths.requirements("torch-cpu"))]
    try:
        _pip(paths, console, "installing torch (CPU build, about 200 MB)", pinned)
    except InstallError:
        index = process_environment().get("TORCH_CPU_INDEX", TORCH_CPU_INDEX)
        console.line(f"    not found where pip looks by itself; trying {index}")
        _pip(paths, console, "installing torch from the CPU wheel index", ["--index-url", index, *pinned])


def _pip(paths: Paths, console: Console, title: str, arguments: list[str]) -> None:
    command = [str(paths.python), "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", *arguments]
    with (
        console.step(title) as step,
        paths.log.open("a") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=paths.root
        ) as process,
    ):
        last = ""
        for line in process.stdout or ():
            log.write(line)
            last = line.strip() or last
            step.note = " ".join(last.split()[:2])[:40]
        if process.wait() != 0:
            raise InstallError(f"{title} failed: {last} (all of pip's output: {paths.log})")


def _stamp(paths: Paths, name: str, digest: str) -> None:
    path = paths.venv / _STAMP
    document = installed(paths) | {name: digest}
    path.with_suffix(".new").write_text(json.dumps(document, indent=1))
    path.with_suffix(".new").replace(path)


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
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
