"""GSM8K's training problems (openai/grade-school-math, MIT) from a file the user gives.

Either published form is read: JSON Lines (or .gz) with `question` and an `answer` ending in `#### n`, or
with `problem`, `solution`, `answer`. Calculator marks `<<48/2=24>>` are taken out.
"""

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from acemath_training.data.decontaminate import Decontaminator
from acemath_training.data.problem import Problem, box
from acemath_training.errors import DataError

SOURCE = "gsm8k"
_MARK = re.compile(r"<<[^>]*>>")
_OPERATOR = re.compile(r"(?<=[\d)])\s*([-+*/=x])\s*(?=[$(]?\d)")


def rows(path: Path) -> Iterator[dict[str, str]]:
    """The JSON objects of a `.jsonl` or `.jsonl.gz` file.

    Raises:
        DataError: when the file is missing or a line is not a JSON object.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read problems from {path}: {error}") from error


def convert(row: dict[str, str], index: int) -> Problem:
    """One row as a `Problem` whose solution ends in a boxed answer.

    Raises:
        DataError: when a row has none of the known forms.
    """
    try:
        question = row["problem"] if "problem" in row else row["question"]
        worked, _, tail = (row["solution"] if "solution" in row else row["answer"]).partition("####")
    except KeyError as error:
        raise DataError(f"row {index} has no field {error}") from error
    answer = (tail or row["answer"]).strip().replace(",", "")
    lines = [_tidy(line) for line in worked.split("\n") if line.strip()]
    text = "\n".join([*lines, box(answer)])
    return Problem(question.strip(), text, answer, SOURCE, "train")


def _tidy(line: str) -> str:
    line = _OPERATOR.sub(r" \1 ", _MARK.sub("", line)).strip()
    return line.replace(" x ", " * ")


def prepare(path: Path, decontaminator: Decontaminator, *, max_lines: int, max_characters: int) -> list[Problem]:
    """The file's problems without those that touch a test set or are longer than allowed, in file order."""
    kept = []
    for index, row in enumerate(rows(path)):
        problem = convert(row, index)
        short = len(problem.problem) + len(problem.solution) <= max_characters
        if short and problem.solution.count("\n") <= max_lines and not decontaminator.touches(problem.problem):
            kept.append(problem)
    return kept


def write(problems: list[Problem], path: Path) -> None:
    """Save prepared problems as JSON Lines, in an order fixed by a seed so that a cursor means something."""
    order = list(problems)
    random.Random(0).shuffle(order)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")  # a half-written file must not pass for a prepared one
    with partial.open("w", encoding="utf-8") as out:
        for item in order:
            row = {"problem": item.problem, "solution": item.solution, "answer": item.answer}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)


def read(path: Path) -> list[Problem]:
    """Problems that `write` saved.

    Raises:
        DataError: when the file cannot be read or is empty.
    """
    problems = [Problem(**row, source=SOURCE, family="train") for row in rows(path)]
    if not problems:
        raise DataError(f"{path} holds no problems")
    return problems
