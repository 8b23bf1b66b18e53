"""Ways to damage a version that has been published."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.tiny import read_safetensors, safetensors_bytes

from acemath_registry.documents import encode, sha256_hex

Damage = Callable[[Path], object]


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def with_tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the tensors (name → dtype, shape, bytes) of the last weight file."""

    def damage(directory: Path) -> None:
        file = max(directory.glob("*.safetensors"))
        tensors = read_safetensors(file)
        change(tensors)
        file.write_bytes(safetensors_bytes(tensors))

    return damage


def with_manifest(change: Callable[[dict[str, Any]], object], *, sealed: bool = True) -> Damage:
    """Edit the manifest as somebody would who also knows how to seal it again."""

    def damage(directory: Path) -> None:
        path = directory / "manifest.json"
        document = json.loads(path.read_text())
        seal = document.pop("self_sha256")
        change(document)
        path.write_bytes(encode({**document, "self_sha256": sha256_hex(encode(document)) if sealed else seal}))

    return damage


def replace_by_link(name: str) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).rename(directory.parent.parent / f"elsewhere-{directory.name}")
        (directory / name).symlink_to(directory.parent.parent / f"elsewhere-{directory.name}")

    return damage


def list_another(path: str) -> Damage:
    entry = {"path": path, "size": 1, "sha256": "0" * 64}
    return with_manifest(lambda m: m["files"].append(entry))
