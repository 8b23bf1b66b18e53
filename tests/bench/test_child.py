from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.reward.child import Child, ChildFailed


def test_a_leg_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="no_such_system"):
        Child(sys.executable, "no_such_system", {}, {}, tmp_path / "log", 60)


def test_an_interpreter_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-python"):
        Child(str(tmp_path / "no-python"), "ours", {}, {}, tmp_path / "log", 60)
