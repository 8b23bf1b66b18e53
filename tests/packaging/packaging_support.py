"""A folder with exactly what a distribution declares, and nothing else that happens to be installed.

Our own distributions are unpacked from freshly built wheels; third-party ones are linked from this environment,
following their metadata. Run Python on it with `-S`, and an undeclared dependency cannot be imported.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def our_distributions() -> dict[str, Path]:
    """Name → folder of every distribution in the checkout."""
    folders = [path.parent for pattern in ("*/pyproject.toml", "*/*/pyproject.toml") for path in ROOT.glob(pattern)]
    named = {f"acemath-{next((folder / 'src').glob('acemath_*')).name.removeprefix('acemath_')}": folder
             for folder in folders if (folder / "src").is_dir()}  # fmt: skip
    return dict(sorted(named.items()))


def build_wheel(folder: Path, into: Path) -> Path:
    """Build one wheel offline, in this environment."""
    into.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(into)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return max(into.glob("*.whl"), key=lambda path: path.stat().st_mtime)


def make_site(name: str, wheels: dict[str, Path], site: Path, extras: frozenset[str] = frozenset()) -> None:
    """Fill `site` with the distribution `name` and everything that its metadata asks for."""
    site.mkdir()
    waiting, seen = [(canonicalize_name(name), extras)], set[tuple[str, frozenset[str]]]()
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        found = _place(wanted[0], wheels, site)
        if found is not None:
            waiting += _requirements(found, wanted[1])


def _place(name: str, wheels: dict[str, Path], site: Path) -> Distribution | None:
    if name in wheels:
        with zipfile.ZipFile(wheels[name]) as wheel:
            wheel.extractall(site)
        return next(one for one in distributions(path=[str(site)]) if canonicalize_name(one.metadata["Name"]) == name)
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None  # asked for by metadata, left out of the pinned closure on purpose (requirements/overrides.txt)
    for file in found.files or ():
        top = file.parts[0]
        link = site / top
        if top not in ("..", "__pycache__") and not link.exists():
            link.symlink_to(Path(str(found.locate_file(top))))
    return found


def _requirements(found: Distribution, extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    asked = []
    for text in found.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            asked.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return asked
