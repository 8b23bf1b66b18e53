from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from acemath_local import preflight
from acemath_local.preflight import check_disk, check_memory, check_port, port_checks
from acemath_local.settings import Ports

ROOT = Path(__file__).parents[2]


def test_a_taken_port_is_one_sentence_with_the_way_out(free_port):
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        finding = check_port("gateway", port)
    assert not finding.ok
    assert f"port {port} for gateway" in finding.advice and "ACEMATH_LOCAL__PORT_BASE" in finding.advice
    assert check_port("gateway", port).ok


def test_two_services_on_one_port_are_refused():
    assert not port_checks(Ports(gateway=8100))[0].ok


def test_too_little_disk_says_how_much_is_needed(tmp_path: Path):
    assert check_disk(tmp_path / "not" / "there" / "yet", 0.001).ok
    assert "1000000 GiB are needed" in check_disk(tmp_path, 1e6).advice


def test_too_little_memory_says_how_much_there_is(tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 2097152 kB\n")
    assert check_memory(1.0, meminfo).ok
    assert "only 2.0 GiB of memory are available: the stack needs 3.5" in check_memory(3.5, meminfo).advice


def test_a_missing_library_names_its_package(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(preflight.ctypes, "CDLL", missing)
    assert "libnuma1" in preflight.check_libnuma().advice


def test_it_runs_on_a_fresh_clone_without_any_package(free_port):
    source = Path(preflight.__file__).parents[1]
    env = {"PYTHONPATH": str(source), "ACEMATH_LOCAL__PORT_BASE": "39100", "PATH": "/usr/bin:/bin"}
    bare = subprocess.run(
        [sys.executable, "-S", "-m", "acemath_local.preflight"], env=env, capture_output=True, text=True, check=False
    )
    assert "✓ Python" in bare.stdout, bare.stderr


@pytest.mark.parametrize("name", ["install", "preflight", "stop"])
@pytest.mark.parametrize("old", [(3, 6, 9), (3, 9, 2), (3, 10, 4)])
def test_an_old_python_is_told_which_one_to_install(name, old):
    # What an old interpreter does: dataclass(slots=True) is a TypeError there, enum.StrEnum does not exist.
    script = (
        "import dataclasses, runpy, sys\n"
        f"sys.version_info = {old} + ('final', 0); sys.version = '{'.'.join(map(str, old))} (main)'\n"
        "def dataclass(**options): raise TypeError(\"dataclass() got an unexpected keyword argument 'slots'\")\n"
        f"dataclasses.dataclass = dataclass; runpy.run_module('acemath_local.{name}', run_name='__main__')\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "deploy" / "local" / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"✗ this is Python {'.'.join(map(str, old))}: install Python 3.11")
    assert "Traceback" not in done.stderr


def test_the_check_itself_can_be_read_by_an_old_python():
    text = (ROOT / "deploy" / "local" / "src" / "acemath_local" / "__init__.py").read_text()
    ast.parse(text, feature_version=(3, 6))
    assert "annotations" not in text  # `from __future__ import annotations` begins with 3.7
