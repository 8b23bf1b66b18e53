from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from acemath_evaluation.journal import Journal, JournalError, config_digest, read_entries, read_journal

CONFIG = {"n": 8, "seed": 0}


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    with Journal(path, CONFIG) as journal:
        journal.append({"id": "a", "text": "1\n2"})
    with Journal(path, dict(reversed(CONFIG.items()))) as journal:
        assert journal.records == {"a": {"id": "a", "text": "1\n2"}}
        journal.append({"id": "b"})
    assert read_journal(path) == (CONFIG, [{"id": "a", "text": "1\n2"}, {"id": "b"}])
    assert json.loads(path.read_text().splitlines()[0])["digest"] == config_digest(CONFIG)


def test_what_was_asked_and_what_failed_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path, CONFIG) as journal:
        journal.note_asked({"a": "template:1", "b": "b", "c": "c"})
        journal.note_failure("a", "deadline_exceeded", "too late")
        journal.note_failure("b", "http_500", "broken")
    with Journal(path, CONFIG) as journal:
        journal.append({"id": "b"})
        size = path.stat().st_size
        journal.note_asked({"b": "b"})
        assert path.stat().st_size == size  # known already
    _, entries = read_entries(path)
    assert entries.asked == {"a": "template:1", "b": "b", "c": "c"}
    assert entries.failed == {"a": "deadline_exceeded"}
    assert list(entries.records) == ["b"]
    assert read_journal(path) == (CONFIG, [{"id": "b"}])


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path, CONFIG) as journal:
        journal.append({"id": "a"})
        journal.append({"id": "b"})
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["id"] for record in read_journal(path)[1]] == ["a"]
    with Journal(path, CONFIG) as journal:
        assert list(journal.records) == ["a"]
        journal.append({"id": "c"})
    assert [record["id"] for record in read_journal(path)[1]] == ["a", "c"]


def test_a_cut_first_line_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"config": {')
    with Journal(path, CONFIG) as journal:
        assert journal.records == {}
    assert read_journal(path) == (CONFIG, [])


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Journal(path, CONFIG).__exit__(None, None, None)
    with pytest.raises(JournalError, match="n is 8 there and 4 here"):
        Journal(path, {**CONFIG, "n": 4})


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.jsonl", CONFIG), pytest.raises(JournalError, match="another process"):
        Journal(tmp_path / "run.jsonl", CONFIG)


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, CONFIG)
    assert path.read_text() == '{"id": "a"}\n'


def test_kill_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    program = (
        "import itertools, sys; from pathlib import Path\n"
        "from acemath_evaluation.journal import Journal\n"
        f"journal = Journal(Path({str(path)!r}), {CONFIG!r})\n"
        "for i in itertools.count():\n"
        "    journal.append({'id': i, 'text': 'x' * 5000}); print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 50:
                os.kill(writer.pid, signal.SIGKILL)
                break
        seen = [50, *(int(line) for line in writer.stdout if line.endswith("\n"))]
    with Journal(path, CONFIG) as journal:
        assert set(map(str, range(seen[-1] + 1))) <= set(journal.records)
