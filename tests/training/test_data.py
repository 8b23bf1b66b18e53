"""Problems, the split, the stream, rows: what the policy is trained on."""

import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acemath_prompts import PromptEncoder
from acemath_training.data import (
    arithmetic,
    decontaminate,
    expressions,
    gsm8k,
    gsm_symbolic,
    held_out,
    splits,
    word_problems,
)
from acemath_training.data.mixture import Mixture, Source
from acemath_training.data.problem import Problem
from acemath_training.data.rows import IGNORED, Row, SftBatches, collate_sft, sft_row
from acemath_training.errors import ConfigError, DataError

EQUATION = re.compile(r"(?<![-+*/] )(?<![-\d.,$€£])(\d+) ([-+*/]) (\d+) = (\d+)(?![\d.,])")


def boxed(problem: Problem) -> str:
    """The text inside the last box of the solution."""
    return problem.solution.rpartition("\\boxed{")[2].removesuffix("}.")


def first_false_equation(text: str) -> str | None:
    """An `a op b = c` that does not hold."""
    for match in EQUATION.finditer(text):
        left, sign, right, result = match.groups()
        if expressions.evaluate(f"{left} {sign} {right}", {}) != int(result):
            return match.group()
    return None


@pytest.mark.parametrize("family", sorted(word_problems.families()))
def test_word_problems_are_solved_and_end_in_the_boxed_answer(family: str) -> None:
    for seed in range(40):
        made = word_problems.draw(word_problems.families()[family], random.Random(seed))
        assert boxed(made) == made.answer
        assert int(made.answer) >= 0
        assert made.solution.split("\n")[-2].count("=") == 1
        assert f"= {made.answer}" in made.solution
        assert first_false_equation(made.solution) is None
        assert "{" not in made.problem + made.solution.replace("\\boxed{", "")


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_a_seed_gives_one_problem(seed: int) -> None:
    family = word_problems.families()["groups_less"]
    assert word_problems.draw(family, random.Random(seed)) == word_problems.draw(family, random.Random(seed))


@pytest.mark.parametrize("family", sorted(arithmetic.TASKS))
def test_arithmetic_solutions_arrive_at_the_packages_answer(family: str) -> None:
    import reasoning_gym

    task = arithmetic.TASKS[family]
    data = reasoning_gym.create_dataset(family, seed=11, size=60, **task.settings)
    solved = 0
    for entry in data:
        found = task.solve(entry)
        if found is None:
            continue
        solved += 1
        lines, answer = found
        assert first_false_equation("\n".join(lines)) is None
        assert data.score_answer(answer.replace("\\frac{", "").replace("}{", "/").rstrip("}"), entry) == 1.0 or (
            answer in str(entry["answer"]).replace("dfrac", "frac")
        )
    assert solved >= 20


def test_gsm_symbolic_is_clean_and_ends_in_the_boxed_answer() -> None:
    data = gsm_symbolic.dataset(3, 300)
    made = [
        gsm_symbolic.convert(data[index], data.task_indices[index], max_number=500, max_characters=700)
        for index in range(300)
    ]
    kept = [problem for problem in made if problem is not None]
    assert len(kept) > 100
    for problem in kept:
        assert boxed(problem) == problem.answer
        assert "Give the result" not in problem.problem
        assert "####" not in problem.solution
        assert first_false_equation(problem.solution) is None


def test_units_between_numbers_are_dropped() -> None:
    assert gsm_symbolic.clean_solution("135 clam / 15 clam/minute = 9 minutes\n#### 9") == ["135 / 15 = 9 minutes"]
    assert gsm_symbolic.clean_solution("3 x 4 = 13") is None


def test_the_committed_split_is_the_draw() -> None:
    assert splits.load() == splits.draw_splits()
    held = splits.load().held_out
    assert len(held["gsm_symbolic"]) >= 15
    assert len(held["word_problems"]) >= 1
    assert set(held["word_problems"]) <= set(word_problems.families())


def test_training_never_sees_a_held_out_family() -> None:
    sources = [Source(kind="word_problems", weight=1), Source(kind="gsm_symbolic", weight=1, max_number=500)]
    stream = Mixture(sources, 5, Path())
    found = {(row.source, row.family) for row in (stream[index] for index in range(400))}
    assert not [item for item in found if splits.load().is_held_out(*item)]
    assert len(found) > 60


def test_held_out_rows_are_of_held_out_families_only_and_repeatable() -> None:
    found: list[str] = []
    for make in (held_out.word_problem_rows, held_out.story_rows, held_out.gsm_symbolic_rows):
        rows = list(make(3))
        families = {row["meta"]["template"] for row in rows}
        assert len(rows) == 3 * len(families)
        assert rows == list(make(3))
        assert len({row["problem"] for row in rows}) > 0.95 * len(rows)
        found += sorted(families)
    held = splits.load().held_out
    assert sorted(found) == sorted(f"{source}/{family}" for source in held for family in held[source])


@pytest.mark.parametrize(("kind", "family"), [("word_problems", "distractor"), ("gsm_symbolic", "0")])
def test_a_held_out_family_cannot_be_asked_for(kind: str, family: str) -> None:
    assert splits.load().is_held_out(kind, family)
    with pytest.raises(ConfigError, match="held out"):
        Mixture([Source(kind=kind, weight=1, families=(family,))], 0, Path())  # type: ignore[arg-type]


def test_the_stream_is_a_function_of_seed_and_row() -> None:
    sources = [Source(kind="word_problems", weight=2), Source(kind="arithmetic", weight=1)]
    first, again = Mixture(sources, 5, Path()), Mixture(sources, 5, Path())
    assert [first[index] for index in (7, 3, 90)] == [again[index] for index in (7, 3, 90)]
    assert first[7] != Mixture(sources, 6, Path())[7]


def test_expressions_refuse_code_and_remainders() -> None:
    assert expressions.evaluate("a * b - 2", {"a": 3, "b": 4}) == 10
    for bad in ("a / b", "a.real", "f(a)", "a ** b", "c", "True"):
        with pytest.raises(DataError):
            expressions.evaluate(bad, {"a": 7, "b": 2})


def test_gsm8k_rows_lose_their_marks(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "She has 48/2 = <<48/2=24>>24 clips.\n#### 24"}
    source, out = tmp_path / "train.jsonl", tmp_path / "rows.jsonl"
    source.write_text(json.dumps(row) + "\n")
    made = gsm8k.prepare(source, decontaminate.Decontaminator(), max_lines=3, max_characters=400)
    assert made[0].solution == "She has 48 / 2 = 24 clips.\nThe answer is \\boxed{24}."
    gsm8k.write(made, out)
    assert gsm8k.read(out) == made


def test_decontamination_by_words_and_by_hash() -> None:
    test = "Tom has twelve red apples and he buys five more apples at the old market in town today."
    guard = decontaminate.Decontaminator([test], [hashlib.sha256(b"how many days are in a week").hexdigest()])
    assert guard.touches("Yesterday " + test)
    assert guard.touches("How many days are in a  week?")
    assert not guard.touches("Tom has twelve red apples. How many does he have?")


def test_labels_begin_after_the_prompt_and_end_with_the_turn(tiny_base: Path) -> None:
    encoder = PromptEncoder.from_directory(tiny_base)
    problem = Problem("What is 2 + 2?", "2 + 2 = 4\nThe answer is \\boxed{4}.", "4", "test", "test")
    row = sft_row(encoder, problem, 2)
    assert row.ids[-1] == 2
    batch = collate_sft([row, Row((*row.ids[: row.prompt_length], 5, 2), row.prompt_length)], 2)
    shared = len(batch["prefix"])
    labels = batch["labels"][0].tolist()
    assert shared == row.prompt_length - 1
    assert labels[: row.prompt_length - shared] == [IGNORED] * (row.prompt_length - shared)
    assert tuple(labels[row.prompt_length - shared :]) == row.ids[row.prompt_length :]
    assert batch["labels"][1].tolist().count(IGNORED) == len(labels) - 2
    assert batch["attention_mask"].sum(1).tolist() == [len(row.ids), row.prompt_length + 2]


def test_batches_are_a_function_of_their_number_and_lose_no_row() -> None:
    def row(index: int) -> Row:
        return Row((*range(3 + index % 7), 1000 + index), 2)

    batches = SftBatches(row, rows_per_batch=4, batches=32, cursor=10)
    seen = sorted(item.ids[-1] - 1000 for index in range(16) for item in batches[index])
    assert seen == list(range(10, 74))
    again = SftBatches(row, rows_per_batch=4, batches=32, cursor=10)
    assert [again[index] for index in (20, 3)] == [batches[index] for index in (20, 3)]
    assert batches.cursor_after(5) == 74
