"""Every row is looked at before the first step: too long, malformed or none at all."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from acemath_prompts import PromptEncoder
from acemath_training.data.pools import Candidate, Pool
from acemath_training.errors import DataError
from acemath_training.jobs import sft_rows
from acemath_training.jobs.config import SftConfig
from acemath_training.jobs.scored_lists import within_length

END_OF_TURN = 2


@pytest.fixture(scope="session")
def encoder(tiny_base: Path) -> PromptEncoder:
    """Of the tiny base: one token per byte."""
    return PromptEncoder.from_directory(tiny_base)


def job(data: dict[str, Any], **training: Any) -> SftConfig:
    """A job of one row per batch."""
    length = training or {"epochs": 1}
    return SftConfig.model_validate(
        {
            "job": "sft",
            "stage": "test",
            "model": {"base": "tiny"},
            "data": data,
            "training": {"learning_rate": 1e-3, "rows_per_device": 1, **length},
        }
    )


def write(path: Path, lengths: list[int]) -> None:
    """Conversations whose answers have these lengths."""
    rows = [
        {"messages": [{"role": "user", "content": f"{number}"}, {"role": "assistant", "content": "x" * length}]}
        for number, length in enumerate(lengths)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_long_conversations_are_left_out_and_counted(
    encoder: PromptEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "rows.jsonl", [10] * 20 + [900, 901] + [10] * 12)
    with caplog.at_level(logging.WARNING):
        made = sft_rows.make(job({"file": "rows.jsonl", "max_length": 300}), tmp_path, encoder, END_OF_TURN, 2)
    assert (made.left_out, len(made.batches)) == (2, 32)
    assert "2 of 34 conversations have more than 300 tokens" in caplog.text
    seen = {row.ids for index in range(len(made.batches)) for row in made.batches[index]}
    assert len(seen) == 32 and max(map(len, seen)) <= 300


def test_a_file_without_long_rows_keeps_its_order(encoder: PromptEncoder, tmp_path: Path) -> None:
    write(tmp_path / "short.jsonl", [10] * 20)
    write(tmp_path / "mixed.jsonl", [10] * 20 + [900])
    short, mixed = (
        sft_rows.make(job({"file": f"{name}.jsonl", "max_length": 300}), tmp_path, encoder, END_OF_TURN, 1).batches
        for name in ("short", "mixed")
    )
    assert [short[index] for index in range(16)] == [mixed[index] for index in range(16)]


def test_nothing_left_is_an_error(encoder: PromptEncoder, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [900])
    with pytest.raises(DataError, match="no conversation that can be used"):
        sft_rows.make(job({"file": "rows.jsonl", "max_length": 300}), tmp_path, encoder, END_OF_TURN, 1)


def test_a_malformed_line_ends_the_job_before_it_begins(encoder: PromptEncoder, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [10] * 40)
    with (tmp_path / "rows.jsonl").open("a") as out:
        out.write('{"messages": [{"role": "user", "content": "?"}]}\n')
    with pytest.raises(DataError, match="line 41: the last turn"):
        sft_rows.make(job({"file": "rows.jsonl"}), tmp_path, encoder, END_OF_TURN, 1)


def test_a_generated_row_that_is_too_long_ends_the_job_before_it_begins(encoder: PromptEncoder, tmp_path: Path) -> None:
    data = {"mixture": [{"kind": "word_problems", "weight": 1}], "max_length": 400}
    with pytest.raises(DataError, match=r"\d+ of 64 generated rows .*data.max_length 400 \(the first is row \d+, word"):
        sft_rows.make(job(data, max_steps=50), tmp_path, encoder, END_OF_TURN, 1)


def test_long_responses_are_left_out_of_their_pools(encoder: PromptEncoder, caplog: pytest.LogCaptureFixture) -> None:
    candidates = tuple(Candidate(text="x" * size, correct=size > 5) for size in (5, 10, 900))
    pool = Pool(problem="p", answer="1", source="s", family="f", candidates=candidates)
    fine = pool.model_copy(update={"candidates": candidates[:2]})
    with caplog.at_level(logging.WARNING):
        assert within_length([fine, pool, fine], encoder, 300) == ([fine] * 3, 1)
    assert "1 of 7 responses have more than 300 tokens" in caplog.text
