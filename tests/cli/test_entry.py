"""How the console script ends that was interrupted, or whose output finds no room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = "import sys; sys.argv = ['acemath', *sys.argv[1:]]; from acemath_cli.entry import main; main()"
INTERRUPTED = "import builtins, sys; find = builtins.__import__\n" + (
    "def stop(name, *rest):\n    if name == 'typer': raise KeyboardInterrupt\n    return find(name, *rest)\n"
    "from acemath_cli.entry import main; builtins.__import__ = stop; main()"
)


def test_an_interrupted_import_is_no_traceback() -> None:
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "acemath: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_without_room_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, "registry", "list", "--root", str(tmp_path), "--json"]
    (tmp_path / "models").mkdir()
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("acemath: standard output can not be written (No space left on device)")
    assert ended.stderr.count("\n") == 1
