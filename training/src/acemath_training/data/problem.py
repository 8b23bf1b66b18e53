"""One problem with a worked solution: what every source yields."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    r"""A problem, its worked solution ending in \boxed{answer}, and where both come from.

    `source` names the generator or data set, `family` the template or generator inside it (the unit
    of the split: a held-out family is never trained on), `answer` is the text inside the box.
    """

    problem: str
    solution: str
    answer: str
    source: str
    family: str

    @property
    def key(self) -> str:
        """`source/family`, the name that `splits.json` lists."""
        return f"{self.source}/{self.family}"


# Sources build problems from a seeded generator; None means "this draw was filtered out, draw again".
Draw = Callable[[random.Random], Problem | None]


def box(answer: str) -> str:
    """The sentence that ends every solution."""
    return f"The answer is \\boxed{{{answer}}}."
