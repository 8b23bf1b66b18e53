"""`gsm_symbolic` of reasoning-gym with its worked solutions rewritten to short clean lines.

The package (Apache-2.0) holds 85 usable templates. It appends a formatting sentence to each question,
which is cut, and ends each solution in `#### answer`, which becomes a boxed answer. Solutions whose
arithmetic is not shown in whole numbers are filtered out rather than repaired.
"""

import random
import re
from functools import cache
from typing import Any, Final, Protocol

from acemath_training.data.problem import Problem, box

SOURCE = "gsm_symbolic"
_SUFFIX: Final = " Give the result as your final answer. Do not include units."
_UNITS = re.compile(r"(?<=\d)( [A-Za-z][A-Za-z'/]*){1,4} (?=[-+*/=] ?[$€£]?\d)")
_TIMES = re.compile(r"(?<=\d) ?[x×] ?(?=[$€£]?\d)")
_OPERATORS = re.compile(r"(?<=[\d)])\s*([-+*/=])\s*(?=[$€£(]?\d)")
_NUMBER = re.compile(r"\d[\d,]*\.?\d*")
_EQUATION = re.compile(r"((?:\d+ [-+*] )+\d+|\d+ / \d+) = (\d+)(?![\d.,/%])")


class GsmSymbolic(Protocol):
    """The part of reasoning-gym's data set used here."""

    task_indices: list[int]

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def dataset(seed: int, size: int) -> GsmSymbolic:
    """reasoning-gym's data set; `task_indices[i]` is the template of problem i."""
    import reasoning_gym  # noqa: PLC0415 - 3 s to import; only generation needs it

    made: GsmSymbolic = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=size)
    return made


@cache
def template_ids() -> tuple[int, ...]:
    """The templates the package draws from."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok  # noqa: PLC0415

    return tuple(tasks_ok)


def draw(rng: random.Random, *, max_number: int, max_characters: int) -> Problem | None:
    """One problem of any template, or None when it is filtered out.

    Args:
        rng: gives the package's own seed.
        max_number: largest number allowed in question and solution.
        max_characters: longest question plus solution allowed.
    """
    rows = dataset(rng.randrange(2**31), 1)
    entry = rows[0]
    return convert(entry, rows.task_indices[0], max_number=max_number, max_characters=max_characters)


def convert(entry: dict[str, Any], template: int, *, max_number: int, max_characters: int) -> Problem | None:
    """An entry of the package as a `Problem`, or None when it does not meet the limits."""
    question = str(entry["question"]).removesuffix(_SUFFIX).strip()
    lines = clean_solution(str(entry["metadata"]["answer_cot"]))
    answer = str(entry["answer"]).strip()
    if lines is None or not answer.lstrip("-").isdigit():
        return None
    text = "\n".join([*lines, box(answer)])
    too_long = len(question) + len(text) > max_characters
    if too_long or _largest(question + " " + text) > max_number or answer not in _numbers(lines[-1]):
        return None
    return Problem(question, text, answer, SOURCE, str(template))


def question_of(entry: dict[str, Any]) -> str:
    """The question without the package's formatting sentence."""
    return str(entry["question"]).removesuffix(_SUFFIX).strip()


def clean_solution(worked: str) -> list[str] | None:
    """The lines of a worked solution with plain equations, or None when it is not clean.

    A unit between a number and an operator is dropped (`135 clam / 15 clam/minute = 9` becomes
    `135 / 15 = 9`), `x` and `×` become `*`, operators get spaces. A false equation, a list heading
    or a fraction such as `7.0` makes the whole solution unclean.
    """
    lines = [line.strip() for line in worked.split("\n") if line.strip() and not line.startswith("####")]
    cleaned = [_clean_line(line) for line in lines]
    text = "\n".join(cleaned)
    if not cleaned or "•" in text or ".0" in text or "step by step" in text:
        return None
    if any(not _true(match) for match in _EQUATION.finditer(text)):
        return None
    return cleaned


def _clean_line(line: str) -> str:
    line = _TIMES.sub(" * ", _UNITS.sub(" ", line))
    return _OPERATORS.sub(r" \1 ", line)


def _true(match: re.Match[str]) -> bool:
    parts = match.group(1).split(" ")
    if "/" in parts:
        return int(parts[0]) == int(parts[2]) * int(match.group(2))
    total, product, sign = 0, int(parts[0]), 1
    for symbol, number in zip(parts[1::2], parts[2::2], strict=True):
        if symbol == "*":
            product *= int(number)
        else:
            total, product, sign = total + sign * product, int(number), 1 if symbol == "+" else -1
    return total + sign * product == int(match.group(2))


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "").rstrip(".") for number in _NUMBER.findall(text)]


def _largest(text: str) -> float:
    return max((float(number) for number in _numbers(text)), default=0.0)
