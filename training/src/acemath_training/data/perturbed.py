"""Lists of a right solution and plausible wrong ones, made by changing one step: hard negatives without sampling.

A small policy is right nearly always on what it was trained on, so its own samples give few lists with right and wrong
in them. Here one step of a template's solution goes wrong as a solver's does, and what follows is computed from it: the
text stays fluent and its other equations true, so that only the reasoning tells right from wrong. It stands beside the
candidates that AceMath samples (arXiv 2412.15084, section 4.1), not in their place.
"""

import random
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from acemath_training.data import pools, splits, word_problems
from acemath_training.data.pools import Candidate, Pool
from acemath_training.data.problem import box
from acemath_training.data.word_problems import Facts, Family
from acemath_training.errors import DataError

_OPERATORS = "+-*/"
_NAME = re.compile(r"\b[a-z]+\b")
_SLIPS = (-10, -2, -1, 1, 2, 10)
_TRIES = 60


class Mistake(StrEnum):
    """What goes wrong in one step."""

    OPERATION = "operation"  # + where * belongs
    OPERAND = "operand"  # another number of the problem
    SLIP = "slip"  # 3 * 8 = 25
    EARLY_END = "early_end"  # the last step is left out


def draw(family: Family, rng: random.Random, *, wrong: int = 5) -> Pool:
    """One problem with its right solution and up to `wrong` different wrong ones.

    Raises:
        DataError: when the family's numbers cannot be met or no step can go wrong.
    """
    facts = word_problems.facts(family, rng)
    right = _text(*word_problems.solve(family.s, facts))
    answer = word_problems.solve(family.s, facts)[1]
    texts: dict[str, None] = {}
    for _ in range(_TRIES):
        made = _wrong(family, facts, answer, rng)
        if made is not None and made != right:
            texts[made] = None
        if len(texts) == wrong:
            break
    if not texts:
        raise DataError(f"no step of family {family.id!r} can go wrong")
    candidates = [Candidate(text=right, correct=True, score=0.0, model="template")]
    candidates += [Candidate(text=text, correct=False, score=0.0, model="perturbed") for text in texts]
    return Pool(
        problem=facts.question,
        answer=str(answer),
        source=word_problems.SOURCE,
        family=family.id,
        candidates=tuple(candidates),
    )


def _wrong(family: Family, facts: Facts, answer: int, rng: random.Random) -> str | None:
    """A solution with one mistake; None when it cannot be computed or ends in the right answer all the same."""
    mistake = rng.choice(list(Mistake))
    try:
        lines, value = _MAKERS[mistake](family, facts, rng)
    except DataError:
        return None
    return None if value == answer or value <= 0 else _text(lines, value)


def _operation(family: Family, facts: Facts, rng: random.Random) -> tuple[list[str], int]:
    def changed(expression: str) -> str:
        places = [index for index, letter in enumerate(expression) if letter in _OPERATORS]
        if not places:
            raise DataError("no operator")
        place = rng.choice(places)
        other = rng.choice(_OPERATORS.replace(expression[place], ""))
        return expression[:place] + other + expression[place + 1 :]

    return word_problems.solve(_changed(family.s, changed, rng), facts)


def _operand(family: Family, facts: Facts, rng: random.Random) -> tuple[list[str], int]:
    def changed(expression: str) -> str:
        found = rng.choice(list(_NAME.finditer(expression)) or [None])
        others = sorted(set(facts.values) - {found.group()} if found else ())
        if found is None or not others:
            raise DataError("no other number")
        return expression[: found.start()] + rng.choice(others) + expression[found.end() :]

    return word_problems.solve(_changed(family.s, changed, rng), facts)


def _slip(family: Family, facts: Facts, rng: random.Random) -> tuple[list[str], int]:
    step = rng.choice([match for line in family.s for match in word_problems.STEP.finditer(line)])
    return word_problems.solve(family.s, facts, slips={step.group(1): rng.choice(_SLIPS)})


def _early_end(family: Family, facts: Facts, rng: random.Random) -> tuple[list[str], int]:
    if len(family.s) < 2:
        raise DataError("one step only")
    return word_problems.solve(family.s[:-1], facts)


_MAKERS: dict[Mistake, Callable[[Family, Facts, random.Random], tuple[list[str], int]]] = {
    Mistake.OPERATION: _operation,
    Mistake.OPERAND: _operand,
    Mistake.SLIP: _slip,
    Mistake.EARLY_END: _early_end,
}


def _changed(steps: tuple[str, ...], change: Callable[[str], str], rng: random.Random) -> list[str]:
    """The lines with the expression of one step changed."""
    where = rng.choice(
        [(index, match) for index, line in enumerate(steps) for match in word_problems.STEP.finditer(line)]
    )
    index, match = where
    lines = list(steps)
    lines[index] = lines[index][: match.start(2)] + change(match.group(2)) + lines[index][match.end(2) :]
    return lines


def _text(lines: list[str], value: int) -> str:
    return "\n".join([*lines, box(str(value))])


def write(path: Path, *, problems: int, seed: int) -> int:
    """Save `problems` lists, of every training family in turn, as a pool file; returns how many.

    Raises:
        DataError: see `draw`.
    """
    known = word_problems.families()
    names = splits.load().training(word_problems.SOURCE, sorted(known))
    partial = path.with_name(path.name + ".partial")  # a half-written file must not pass for a whole one
    partial.unlink(missing_ok=True)
    for index in range(problems):
        family = known[names[index % len(names)]]
        pools.append(partial, draw(family, random.Random(f"{seed}:perturbed:{index}")))
    partial.replace(path)
    return problems
