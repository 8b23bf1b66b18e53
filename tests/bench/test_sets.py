from __future__ import annotations

from pathlib import Path

import pytest

from bench.reward.groups import Group
from bench.reward.sets import FOLDER, SetError, described, read_hashes, read_set, read_sets, write_hashes, write_set

ONE = Group("p", (1, 2), ("a", "b"), ((3,), (4, 5)))


def frozen(folder: Path) -> None:
    write_hashes(folder, {"S": write_set(folder, "S", "about", [ONE])})


def test_a_set_comes_back_as_it_was_frozen(tmp_path: Path) -> None:
    frozen(tmp_path)
    assert read_set(tmp_path, "S") == [ONE]
    assert read_sets(tmp_path, None, 0) == {"S": [ONE]}


def test_the_same_content_has_the_same_hash(tmp_path: Path) -> None:
    assert write_set(tmp_path, "S", "about", [ONE]) == write_set(tmp_path, "S", "about", [ONE])


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    frozen(tmp_path)
    path = tmp_path / "S.json.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(SetError, match="is not what"):
        read_set(tmp_path, "S")


def test_an_unknown_set_is_named(tmp_path: Path) -> None:
    frozen(tmp_path)
    with pytest.raises(SetError, match="no set S9"):
        read_set(tmp_path, "S9")


def test_a_set_without_hashes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="SHA256SUMS"):
        read_set(tmp_path, "S")


@pytest.mark.parametrize(
    ("name", "problems", "candidates"),
    [("S1", 1, 8), ("S2", 50, 400), ("S3", 20, 1280), ("S4", 12, 96), ("S5", 25, 200), ("S6", 12, 96)],
)
def test_the_committed_sets_are_what_the_page_says(name: str, problems: int, candidates: int) -> None:
    found = described(read_set(FOLDER, name))
    assert (found["problems"], found["candidates"]) == (problems, candidates)
    assert found["distinct"] == (candidates * 3 // 4 if name == "S5" else candidates)
    if name == "S4":
        assert found["candidate_tokens_max_over_mean"] >= 3
    if name == "S6":
        assert found["prompt_tokens_mean"] >= 2 * found["candidate_tokens_mean"]


def test_every_committed_set_has_a_hash() -> None:
    assert sorted(read_hashes(FOLDER)) == sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.gz"))
