"""What a person sees: followed logs and steps."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from acemath_local.console import Console
from acemath_local.logs import LogFollower, readable
from acemath_local.run import acemath_command, serving


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_new_and_whole_lines_are_shown_with_the_service_before_them(tmp_path: Path):
    old, new = tmp_path / "gateway.log", tmp_path / "redis.log"
    old.write_text("from an earlier run\n")
    shown: list[str] = []
    with LogFollower({"gateway": old, "redis": new}, shown.append):
        with old.open("a") as file:
            file.write("hello\nhalf a li")
        new.write_text("started\n")
    assert sorted(shown) == ["gateway │ hello", "redis   │ started"]


def test_a_rotated_file_is_followed_from_its_beginning(tmp_path: Path, eventually):
    log, shown = tmp_path / "a.log", list[str]()
    log.write_text("")
    with LogFollower({"a": log}, shown.append):
        with log.open("a") as file:
            file.write("one\n")
        eventually(lambda: len(shown) == 1, 60)
        log.rename(tmp_path / "a.log.1")
        log.write_text("two, a longer line than before\n")
        eventually(lambda: len(shown) == 2, 60)
    assert shown == ["a │ one", "a │ two, a longer line than before"]


def test_json_lines_are_made_readable_and_others_left_alone():
    line = json.dumps({"time": "t", "level": "info", "logger": "l", "message": "done", "status": 200})
    assert readable(line) == "info    done status=200"
    assert readable("{not json") == "{not json"
    assert readable('["a"]') == '["a"]'
    assert readable('{"level": "info"}') == '{"level": "info"}'


def test_a_step_says_how_long_it_took_and_whether_it_failed():
    stream = io.StringIO()
    console = Console(stream)
    with console.step("merging"):
        pass
    with pytest.raises(ValueError, match="no"), console.step("loading"):
        raise ValueError("no")
    assert re.findall(r"(✓ merging|✗ loading): \d+\.\d s", stream.getvalue()) == ["✓ merging", "✗ loading"]


def test_on_a_terminal_lines_stand_above_the_live_one():
    stream = Terminal()
    console = Console(stream)
    with console.step("starting") as step:
        step.note = "policy"
        console.line("a log line")
    text = stream.getvalue()
    assert text.index("a log line") < text.index("… starting (policy)") < text.index("✓ starting")


def test_the_last_line_names_the_command_as_one_types_it_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("acemath_local.run.sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    said = serving("http://127.0.0.1:8080", acemath_command())
    assert "Serving at http://127.0.0.1:8080" in said and " .venv/bin/acemath doctor" in said
    monkeypatch.chdir("/")
    assert acemath_command() == Path(str(tmp_path)[1:]) / ".venv" / "bin" / "acemath"
