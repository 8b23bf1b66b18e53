"""The frozen sets: gzip JSON files of token ids, their hashes beside them, checked whenever they are read."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.reward.groups import Group, beginning, candidate_count, useful_tokens

FOLDER = Path(__file__).parent / "sets"
HASHES = "SHA256SUMS"


class SetError(Exception):
    """A set that is missing or is not what was frozen."""


def write_set(folder: Path, name: str, about: str, groups: Sequence[Group]) -> str:
    """Write `<name>.json.gz`, the same bytes for the same content; gives its sha256."""
    document = {"name": name, "about": about, "problems": [group.to_json() for group in groups]}
    packed = gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0)
    (folder / f"{name}.json.gz").write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


def write_hashes(folder: Path, hashes: dict[str, str]) -> None:
    """As `sha256sum --check` reads them."""
    lines = [f"{digest}  {name}.json.gz\n" for name, digest in sorted(hashes.items())]
    (folder / HASHES).write_text("".join(lines))


def read_hashes(folder: Path) -> dict[str, str]:
    """Set name -> sha256."""
    path = folder / HASHES
    if not path.is_file():
        raise SetError(f"{path} is missing; `make-sets` writes it")
    rows = [line.split() for line in path.read_text().splitlines()]
    return {name.removesuffix(".json.gz"): digest for digest, name in rows}


def read_set(folder: Path, name: str) -> list[Group]:
    """The groups of a frozen set.

    Raises:
        SetError: it is not there, or has another hash.
    """
    path, expected = folder / f"{name}.json.gz", read_hashes(folder).get(name)
    if expected is None or not path.is_file():
        raise SetError(f"there is no set {name} in {folder}")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != expected:
        raise SetError(f"{path} is not what {HASHES} says; take the committed file, or make all sets again")
    return [Group.from_json(row) for row in json.loads(gzip.decompress(packed))["problems"]]


def read_sets(folder: Path, names: Sequence[str] | None, tokens: int) -> dict[str, list[Group]]:
    """The wanted sets, all by default, each cut to about `tokens` useful tokens (0: whole)."""
    chosen = names or sorted(read_hashes(folder))
    return {name: beginning(read_set(folder, name), tokens) for name in chosen}


def described(groups: Sequence[Group]) -> dict[str, Any]:
    """Sizes of a set, as measured."""
    lengths = [len(own) for group in groups for own in group.candidates]
    prompts = [len(group.prompt) for group in groups]
    return {
        "problems": len(groups),
        "candidates": candidate_count(groups),
        "distinct": sum(len(set(group.candidates)) for group in groups),
        "useful_tokens": useful_tokens(groups),
        "useful_tokens_with_duplicates": sum(group.with_duplicates for group in groups),
        "tokens_prompt_repeated": sum(len(g.prompt) + len(own) for g in groups for own in g.candidates),
        "prompt_tokens_mean": round(sum(prompts) / len(prompts), 1),
        "candidate_tokens_mean": round(sum(lengths) / len(lengths), 1),
        "candidate_tokens_max_over_mean": round(max(lengths) * len(lengths) / sum(lengths), 2),
    }
