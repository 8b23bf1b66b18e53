"""Own word problems of one to four steps: the easy domain in which the embedded policy is good.

`templates/*.yaml` holds the families. Each family has number ranges, phrasings and solution lines;
`[x: a * b]` in a line is computed, shown as `3 * 8 = 24` and bound to `x`. The last bound value is
the answer.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from acemath_training.data.expressions import evaluate, holds, shown
from acemath_training.data.problem import Problem, box
from acemath_training.errors import DataError

SOURCE = "word_problems"
FIRST_FILES = ("one_step.yaml", "two_step.yaml")
LATER_FILES = ("stories.yaml",)
FILES = FIRST_FILES + LATER_FILES
STEP = re.compile(r"\[([a-z]): ([^\]]+)\]")
_ATTEMPTS = 200

_HE = ("Tom", "Ben", "Omar", "Luis", "Ravi", "Noah", "Ivan", "Sam", "Kenji", "Paul", "David", "Jack")
_SHE = ("Anna", "Mia", "Sara", "Lucy", "Priya", "Emma", "Zoe", "Nina", "Mei", "Rosa", "Kate", "Lily")
_ITEMS = (
    "apples",
    "marbles",
    "books",
    "stickers",
    "pencils",
    "cookies",
    "shells",
    "coins",
    "stamps",
    "eggs",
    "balloons",
    "cards",
    "oranges",
    "toys",
    "flowers",
    "candies",
    "crayons",
    "beads",
    "muffins",
    "tomatoes",
    "rocks",
    "buttons",
    "peaches",
    "bottles",
    "blocks",
    "cups",
)
_BOXES = ("boxes", "bags", "baskets", "jars", "trays", "shelves", "crates", "packs")
_THINGS = ("book", "hat", "ball", "toy car", "lamp", "game", "shirt", "kite", "puzzle", "pen")


class Family(BaseModel):
    """One family of problems: the unit that is trained on or held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    n: dict[str, tuple[int, int]]
    let: dict[str, str] = {}
    words: dict[str, tuple[int, ...]] = {}
    require: tuple[str, ...] = ()
    q: Annotated[tuple[str, ...], Field(min_length=1)]
    s: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Facts:
    """What one problem of a family is about: numbers and words by name, and the question that states them."""

    values: dict[str, int]
    words: dict[str, str]
    question: str


@cache
def families(files: tuple[str, ...] = FILES) -> dict[str, Family]:
    """Every family of `files` by id.

    Raises:
        DataError: when two families share an id.
    """
    found: dict[str, Family] = {}
    folder = resources.files("acemath_training.data") / "templates"
    for name in files:
        rows = TypeAdapter(list[Family]).validate_python(yaml.safe_load((folder / name).read_text()))
        for family in rows:
            if family.id in found:
                raise DataError(f"two word-problem families are called {family.id!r}")
            found[family.id] = family
    return found


def draw(family: Family, rng: random.Random) -> Problem:
    """One problem of `family`; the same generator state gives the same problem.

    Raises:
        DataError: when the family's conditions cannot be met or a division is not whole.
    """
    found = facts(family, rng)
    lines, answer = solve(family.s, found)
    text = "\n".join([*lines, box(str(answer))])
    return Problem(found.question, text, str(answer), SOURCE, family.id)


def facts(family: Family, rng: random.Random) -> Facts:
    """The numbers, words and question of one problem; the same generator state gives the same ones.

    Raises:
        DataError: when the family's conditions cannot be met.
    """
    values = _numbers(family, rng)
    words = _words(rng)
    return Facts(values, words, rng.choice(family.q).format(**words, **values))


def _numbers(family: Family, rng: random.Random) -> dict[str, int]:
    for _ in range(_ATTEMPTS):
        values = {name: rng.randint(low, high) for name, (low, high) in family.n.items()}
        values |= {name: rng.choice(choices) for name, choices in family.words.items()}
        for name, expression in family.let.items():
            values[name] = evaluate(expression, values)
        if all(holds(condition, values) for condition in family.require):
            return values
    raise DataError(f"no numbers meet the conditions of family {family.id!r}")


def _words(rng: random.Random) -> dict[str, str]:
    he = rng.random() < 0.5
    name = rng.choice(_HE if he else _SHE)
    friend, third = rng.sample([other for other in _HE + _SHE if other != name], 2)
    items, others = rng.sample(_ITEMS, 2)
    pronouns = ("he", "him", "his") if he else ("she", "her", "her")
    return {
        "name": name,
        "friend": friend,
        "third": third,
        "items": items,
        "others": others,
        "boxes": rng.choice(_BOXES),
        "thing": rng.choice(_THINGS),
        **dict(zip(("he", "him", "his"), pronouns, strict=True)),
        "He": pronouns[0].capitalize(),
    }


def solve(steps: Sequence[str], found: Facts, *, slips: Mapping[str, int] | None = None) -> tuple[list[str], int]:
    """The solution's lines and its answer; `slips` adds to a step's result what a solver would get wrong.

    Raises:
        DataError: when an expression cannot be evaluated, or nothing is computed.
    """
    bound = dict(found.values)
    last: list[int] = []

    def show(match: re.Match[str]) -> str:
        text, value = shown(match.group(2), bound)
        wrong = value + (slips or {}).get(match.group(1), 0)
        bound[match.group(1)] = wrong
        last.append(wrong)
        return f"{text.removesuffix(str(value))}{wrong}"

    lines = [STEP.sub(show, step).format(**found.words, **found.values) for step in steps]
    if not last:
        raise DataError("a solution computes nothing")
    return lines, last[-1]
