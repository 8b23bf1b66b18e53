"""Arithmetic and algebra of reasoning-gym with solutions written step by step by our own code.

reasoning-gym (Apache-2.0) gives question and answer, never a solution. Each solver below works from the
entry's metadata and must arrive at the package's answer; a test checks that over many seeds.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from acemath_training.data.problem import Problem, box
from acemath_training.errors import DataError

SOURCE = "arithmetic"
Entry = dict[str, Any]
_FORMATTING = re.compile(r"\s*Give only the .*$")
_EQUATION = re.compile(r"^(?:(\d+)\*)?([a-z])(?: ([+-]) (\d+))? = (-?\d+)$")


@dataclass(frozen=True)
class Task:
    """A reasoning-gym generator, its settings for small numbers, and the solver of its entries."""

    settings: dict[str, int]
    solve: Callable[[Entry], tuple[list[str], str] | None]


def draw(family: str, rng: random.Random) -> Problem | None:
    """One problem of a generator; None when its form has no step-by-step solver.

    Raises:
        DataError: for an unknown generator.
    """
    if family not in TASKS:
        raise DataError(f"unknown arithmetic generator {family!r}; known: {', '.join(TASKS)}")
    import reasoning_gym  # noqa: PLC0415 - 3 s to import; only generation needs it

    task = TASKS[family]
    data = reasoning_gym.create_dataset(family, seed=rng.randrange(2**31), size=1, **task.settings)
    entry = data[0]
    solved = task.solve(entry)
    if solved is None:
        return None
    lines, answer = solved
    question = _FORMATTING.sub("", str(entry["question"]).strip())
    return Problem(question, "\n".join([*lines, box(answer)]), answer, SOURCE, family)


def solve_sum(entry: Entry) -> tuple[list[str], str]:
    """`57 + 87 - 70`: one line per operator, from the left."""
    parts = str(entry["metadata"]["expression"]).split(" ")
    total, lines = int(parts[0]), []
    for sign, number in zip(parts[1::2], parts[2::2], strict=True):
        result = total + int(number) if sign == "+" else total - int(number)
        lines.append(f"{total} {sign} {number} = {result}")
        total = result
    return lines, str(total)


def solve_product(entry: Entry) -> tuple[list[str], str]:
    """`81 * 27`: the first factor times each digit of the second with its place, then the sum."""
    left, right = (int(number) for number in str(entry["metadata"]["expression"]).split(" * "))
    digits = str(right)
    parts = [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits)]
    parts = [part for part in parts if part] or [0]
    lines = [f"{left} * {part} = {left * part}" for part in parts]
    if len(parts) > 1:
        lines.append(f"{' + '.join(str(left * part) for part in parts)} = {left * right}")
    return lines, str(left * right)


def solve_equation(entry: Entry) -> tuple[list[str], str] | None:
    """`20*h + 65 = 1485`: move the constant, then divide. Other forms are left out."""
    match = _EQUATION.match(str(entry["metadata"]["equation"]))
    if match is None:
        return None
    factor, name, sign, constant, right = match.groups()
    lines, value, left = [], int(right), f"{factor}*{name}" if factor else name
    if sign:
        inverse = "-" if sign == "+" else "+"
        moved = value - int(constant) if sign == "+" else value + int(constant)
        lines.append(f"{left} = {value} {inverse} {constant} = {moved}")
        value = moved
    if factor:
        lines.append(f"{name} = {value} / {factor} = {value // int(factor)}")
        value //= int(factor)
    return (lines, str(value)) if lines else None


def solve_gcd(entry: Entry) -> tuple[list[str], str]:
    """Euclid's algorithm, one division with remainder per line."""
    lines, divisor = _euclid(*(int(number) for number in entry["metadata"]["numbers"]))
    return lines, str(divisor)


def solve_lcm(entry: Entry) -> tuple[list[str], str]:
    """The product divided by the greatest common divisor."""
    first, second = (int(number) for number in entry["metadata"]["numbers"])
    lines, divisor = _euclid(first, second)
    quotient = first // divisor
    lines.append(f"The GCD is {divisor}, and {first} / {divisor} = {quotient}")
    lines.append(f"{quotient} * {second} = {quotient * second}")
    return lines, str(quotient * second)


def solve_fraction(entry: Entry) -> tuple[list[str], str]:
    """Both terms divided by their greatest common divisor."""
    top, bottom = int(entry["metadata"]["numerator"]), int(entry["metadata"]["denominator"])
    lines, divisor = _euclid(top, bottom)
    lines.append(f"{top} / {divisor} = {top // divisor}")
    lines.append(f"{bottom} / {divisor} = {bottom // divisor}")
    return lines, f"\\frac{{{top // divisor}}}{{{bottom // divisor}}}"


def _euclid(first: int, second: int) -> tuple[list[str], int]:
    larger, smaller, lines = max(first, second), min(first, second), []
    while smaller:
        lines.append(f"{larger} = {larger // smaller} * {smaller} + {larger % smaller}")
        larger, smaller = smaller, larger % smaller
    return lines, larger


TASKS: dict[str, Task] = {
    "chain_sum": Task({"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}, solve_sum),
    "products": Task({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, solve_product),
    "simple_equations": Task({"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 12}, solve_equation),
    "gcd": Task({"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 60}, solve_gcd),
    "lcm": Task({"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 20}, solve_lcm),
    "fraction_simplification": Task(
        {"min_value": 1, "max_value": 12, "min_factor": 2, "max_factor": 9}, solve_fraction
    ),
}
