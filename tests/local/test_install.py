"""Set-up does what is missing and nothing else; pip itself is replaced by a script that keeps its arguments."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from acemath_local import install as module
from acemath_local.console import Console, Step
from acemath_local.install import InstallError, Paths, install, installed, wanted


@pytest.fixture
def checkout(tmp_path: Path) -> Paths:
    for name in ("torch-cpu", "cpu", "train", "dev"):
        (tmp_path / "requirements").mkdir(exist_ok=True)
        (tmp_path / "requirements" / f"{name}.txt").write_text("one==1\n")
    (tmp_path / "libs" / "core").mkdir(parents=True)
    (tmp_path / "libs" / "core" / "pyproject.toml").write_text("[project]\n")
    paths = Paths(tmp_path)
    paths.python.parent.mkdir(parents=True)
    fake_pip(paths, "exit 0")
    (paths.venv / "acemath-installed.json").write_text("{}")  # .venv itself was made
    return paths


def fake_pip(paths: Paths, end: str) -> None:
    paths.python.write_text(f'#!/bin/sh\necho "$@" >> {paths.root}/calls\necho "last words"\n{end}\n')
    paths.python.chmod(0o755)


def calls(paths: Paths) -> list[str]:
    file = paths.root / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_everything_once_then_nothing(checkout):
    assert install(checkout, "cpu", Console(io.StringIO())) is True
    done = calls(checkout)
    assert ["torch-cpu.txt" in done[0], "--require-hashes" in done[1], "--editable" in done[2]] == [True, True, True]
    assert install(checkout, "cpu", Console(io.StringIO())) is False
    assert calls(checkout) == done


def test_only_what_changed_is_installed_again(checkout):
    install(checkout, "cpu", Console(io.StringIO()))
    before = len(calls(checkout))
    (checkout.root / "libs" / "core" / "pyproject.toml").write_text("[project]\nname='x'\n")
    install(checkout, "cpu", Console(io.StringIO()))
    assert len(calls(checkout)) == before + 1 and "--editable" in calls(checkout)[-1]


def test_the_larger_profile_keeps_the_smaller_one(checkout):
    install(checkout, "cpu", Console(io.StringIO()))
    install(checkout, "dev", Console(io.StringIO()))
    assert installed(checkout) == wanted(checkout, "dev")
    assert install(checkout, "cpu", Console(io.StringIO())) is False


def test_a_failed_step_is_named_and_tried_again(checkout):
    fake_pip(checkout, "exit 1")
    with pytest.raises(InstallError, match=r"torch.*failed: last words"):
        install(checkout, "cpu", Console(io.StringIO()))
    assert "--index-url" in calls(checkout)[-1]  # PyTorch's own index was tried before giving up
    fake_pip(checkout, "exit 0")
    assert install(checkout, "cpu", Console(io.StringIO())) is True


def test_an_unsuitable_machine_is_refused_before_anything_is_made(checkout, monkeypatch):
    advice = module.Finding("libnuma", "missing", "install libnuma1")
    monkeypatch.setattr(module, "machine_checks", lambda: [advice])
    with pytest.raises(InstallError, match="install libnuma1"):
        install(checkout, "cpu", Console(io.StringIO()))
    assert calls(checkout) == []


def test_every_distribution_of_the_checkout_is_known():
    root = Path(__file__).parents[2]
    found = {str(path.parent.relative_to(root)) for pattern in ("*/pyproject.toml", "*/*/pyproject.toml")
             for path in root.glob(pattern) if not path.parts[len(root.parts)].startswith(".")}  # fmt: skip
    assert found <= set(module.DISTRIBUTIONS)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_compiler", lambda: module.Finding("C++ compiler", "missing", "install g++"))


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("profile", ["cpu", "dev"])
def test_serving_and_checks_need_no_compiler(checkout, profile):
    assert install(checkout, profile, Console(io.StringIO())) is True


@pytest.mark.usefixtures("no_compiler")
def test_training_is_refused_without_one_before_anything_is_installed(checkout):
    with pytest.raises(InstallError, match=r"install g\+\+"):
        install(checkout, "train", Console(io.StringIO()))
    assert not (checkout.root / "calls").exists()


def test_training_is_refused_without_one_in_an_environment_that_is_complete(checkout, monkeypatch):
    install(checkout, "train", Console(io.StringIO()))
    monkeypatch.setattr(module, "check_compiler", lambda: module.Finding("C++ compiler", "missing", "install g++"))
    with pytest.raises(InstallError, match=r"install g\+\+"):
        install(checkout, "train", Console(io.StringIO()))


def pip_that_has(paths, where: str) -> None:
    """A pip that finds torch only where `where` is in its arguments, and warns as pip does."""
    paths.python.write_text(
        f'#!/bin/sh\necho "$@" >> "{paths.root}/calls"\necho "WARNING: Running pip as the root user"\n'
        f'case "$*" in *{where}*) echo "Successfully installed";; '
        "*torch-cpu.txt*) echo 'ERROR: No matching distribution found for torch==2.13.0+cpu'; exit 1;; esac\n"
        'echo "WARNING: a new release of pip is available"\n'
    )


def test_torch_from_its_own_index_is_no_failure(checkout):
    pip_that_has(checkout, "--index-url")
    stream = io.StringIO()
    assert install(checkout, "cpu", Console(stream)) is True
    said = stream.getvalue()
    assert "✗" not in said and said.count("✓ installing torch") == 1
    assert "https://download.pytorch.org/whl/cpu" in said and "not on the index that pip is set to" in said


def test_when_no_source_has_torch_both_are_named(checkout):
    pip_that_has(checkout, "--nowhere")
    stream = io.StringIO()
    with pytest.raises(InstallError, match=r"No matching distribution found for torch.*setup\.log"):
        install(checkout, "cpu", Console(stream))
    assert stream.getvalue().count("✗") == 1


def test_warnings_of_pip_are_kept_in_the_log_and_are_no_progress(checkout):
    step = Step("installing")
    pip_that_has(checkout, "--index-url")
    checkout.log.parent.mkdir(parents=True)
    assert module._run_pip(checkout, step, ["--index-url", "x"]) == ""
    assert step.note == "Successfully installed"
    assert checkout.log.read_text().count("WARNING") == 2


def test_a_warning_after_the_error_does_not_hide_it(checkout):
    fake_pip(checkout, "echo 'ERROR: the disk is full'; echo 'WARNING: be careful'; echo '[notice] new pip'; exit 1")
    with pytest.raises(InstallError, match="failed: ERROR: the disk is full"):
        install(checkout, "cpu", Console(io.StringIO()))
