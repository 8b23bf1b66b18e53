"""What a distribution declares is enough to import all of it, and it brings nothing heavy that it must not know."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging_support import build_wheel, make_site, our_distributions

pytestmark = pytest.mark.slow

TENSORS = ("torch", "transformers", "vllm", "deepspeed", "numpy")
MUST_NOT_LOAD = {
    "acemath-core": (*TENSORS, "fastapi", "httpx", "redis"),
    "acemath-web": (*TENSORS, "httpx", "redis"),
    "acemath-prompts": ("torch", "transformers", "vllm", "deepspeed"),
    "acemath-answers": (*TENSORS, "fastapi"),
    "acemath-registry": (*TENSORS, "fastapi"),
    "acemath-gateway": TENSORS,
    "acemath-policy": TENSORS,
    "acemath-reward": ("vllm", "deepspeed"),
    "acemath-cli": (*TENSORS, "fastapi"),
    "acemath-local": (*TENSORS, "fastapi"),
}
EXTRAS = {
    "acemath-gateway": frozenset({"otel"}),
    "acemath-registry": frozenset({"cli"}),
    "acemath-training": frozenset({"cli", "train"}),
}
NEEDS_AN_EXTRA = {"acemath_registry.adapters.arithmetic": ("acemath-registry", "adapters")}
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if module.name not in sys.argv[2:]:
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    into = tmp_path_factory.mktemp("wheels")
    return {name: build_wheel(folder, into / name) for name, folder in our_distributions().items()}


@pytest.mark.parametrize("name", our_distributions())
def test_what_it_declares_is_enough_to_import_it(name, wheels, tmp_path):
    site = tmp_path / "site"
    make_site(name, wheels, site, EXTRAS.get(name, frozenset()))
    command = [sys.executable, "-S", "-c", IMPORT_ALL, name.replace("-", "_"), *NEEDS_AN_EXTRA]
    env = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(done.stdout.split())
    assert not loaded & set(MUST_NOT_LOAD.get(name, ()))


@pytest.mark.parametrize("module", NEEDS_AN_EXTRA)
def test_what_an_extra_declares_is_enough_to_import_its_module(module, wheels, tmp_path):
    name, extra = NEEDS_AN_EXTRA[module]
    done = []
    for extras in (frozenset(), frozenset({extra})):
        make_site(name, wheels, tmp_path / "-".join(("site", *extras)), extras)
        command = [sys.executable, "-S", "-c", f"import {module}"]
        env = {"PYTHONPATH": str(tmp_path / "-".join(("site", *extras)))}
        done.append(subprocess.run(command, env=env, capture_output=True, text=True, check=False).returncode)
    assert done == [1, 0]


@pytest.mark.parametrize("name", our_distributions())
def test_the_wheel_says_what_it_is_and_is_typed(name, wheels):
    package = name.replace("-", "_")
    with zipfile.ZipFile(wheels[name]) as wheel:
        files = wheel.namelist()
        metadata = Parser().parsestr(wheel.read(f"{package}-0.1.0.dist-info/METADATA").decode())
    assert f"{package}/py.typed" in files
    # Shared data (the committed adapters of training) lies beside the package, never among the modules of others.
    roots = {file.partition("/")[0] for file in files} - {f"{package}-0.1.0.data"}
    assert roots == {package, f"{package}-0.1.0.dist-info"}
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_proof_works_an_undeclared_package_cannot_be_imported(wheels, tmp_path):
    site = tmp_path / "site"
    make_site("acemath-core", wheels, site)
    command = [sys.executable, "-S", "-c", "import acemath_core.wire; import httpx"]
    done = subprocess.run(command, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False)
    assert "No module named 'httpx'" in done.stderr
