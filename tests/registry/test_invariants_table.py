"""The table of invariants names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "release-invariants.md"


def test_every_test_that_the_table_names_exists() -> None:
    text = TABLE.read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30 and text.count("::") == len(named), "a name is written in another way"
    missing = [f"{file}::{name}" for file, name in named if name not in functions(ROOT / file)]
    assert not missing


def test_every_invariant_is_in_the_table() -> None:
    text = TABLE.read_text("utf-8")
    assert re.findall(r"^\| (I\d+) \|", text, re.MULTILINE) == [f"I{number}" for number in range(1, 14)]


def functions(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
