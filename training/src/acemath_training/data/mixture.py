"""A stream of training problems made on the fly: row i is a pure function of (mixture, seed, i).

So a run is resumed by its data cursor alone, two runs with one seed see the same rows, and the next
stage starts where the last one stopped.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from acemath_training.data import arithmetic, gsm8k, gsm_symbolic, splits, word_problems
from acemath_training.data.problem import Draw, Problem
from acemath_training.errors import ConfigError, DataError

_ATTEMPTS = 500


class Source(BaseModel):
    """One part of a mixture; `weight` is its share of rows.

    `templates` names the files of word problems to draw from, so that a stage keeps its rows when files are added;
    empty means all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["word_problems", "gsm_symbolic", "arithmetic", "gsm8k"]
    weight: Annotated[float, Field(gt=0)]
    families: tuple[str, ...] = ()
    templates: tuple[Literal["one_step.yaml", "two_step.yaml", "stories.yaml"], ...] = ()
    max_number: Annotated[int, Field(gt=0)] = 10**9
    max_characters: Annotated[int, Field(gt=0)] = 10**6
    file: Path | None = None


class Mixture:
    """Problems by index."""

    def __init__(self, sources: list[Source], seed: int, work_dir: Path) -> None:
        """Take the parts, the seed of the stream, and the folder that relative `file` names start from.

        Raises:
            ConfigError: there is no part, or one names a held-out or unknown family, or lacks its file.
        """
        if not sources:
            raise ConfigError("a mixture needs at least one source")
        self._seed = seed
        self._weights = [source.weight for source in sources]
        self._draws = [_DRAWS[source.kind](source, work_dir) for source in sources]

    def __getitem__(self, index: int) -> Problem:
        """Row `index` of the endless stream.

        Raises:
            DataError: when a source yields nothing within its limits.
        """
        rng = random.Random(f"{self._seed}:{index}")
        draw = rng.choices(self._draws, self._weights)[0]
        for _ in range(_ATTEMPTS):
            problem = draw(rng)
            if problem is not None:
                return problem
        raise DataError(f"a source gave no problem within its limits in {_ATTEMPTS} draws (row {index})")


def _training_families(source: Source, every: list[str]) -> list[str]:
    allowed = splits.load().training(source.kind, every)
    chosen = list(source.families) or allowed
    wrong = sorted(set(chosen) - set(allowed))
    if wrong:
        raise ConfigError(f"{source.kind}: held out or unknown families: {', '.join(wrong)}")
    return chosen


def _word_problems(source: Source, work_dir: Path) -> Draw:
    known = word_problems.families(source.templates or word_problems.FILES)
    chosen = [known[name] for name in _training_families(source, sorted(known))]
    return lambda rng: word_problems.draw(rng.choice(chosen), rng)


def _gsm_symbolic(source: Source, work_dir: Path) -> Draw:
    chosen = frozenset(_training_families(source, [str(item) for item in gsm_symbolic.template_ids()]))

    def draw(rng: random.Random) -> Problem | None:
        made = gsm_symbolic.draw(rng, max_number=source.max_number, max_characters=source.max_characters)
        return made if made is not None and made.family in chosen else None

    return draw


def _arithmetic(source: Source, work_dir: Path) -> Draw:
    chosen = _training_families(source, sorted(arithmetic.TASKS))
    return lambda rng: arithmetic.draw(rng.choice(chosen), rng)


def _gsm8k(source: Source, work_dir: Path) -> Draw:
    if source.file is None:
        raise ConfigError("gsm8k needs `file`, made by `acemath data gsm8k`")
    path = work_dir / source.file
    if not path.is_file():
        made = "`acemath data gsm8k TRAIN.jsonl` makes it from GSM8K's train file"
        raise ConfigError(f"there is no {path}: {made}; --work-dir names the folder where it is")
    problems = [item for item in gsm8k.read(path) if len(item.problem) + len(item.solution) <= source.max_characters]
    return partial(_choice, problems)


def _choice(problems: list[Problem], rng: random.Random) -> Problem:
    return rng.choice(problems)


_DRAWS: dict[str, Callable[[Source, Path], Draw]] = {
    "word_problems": _word_problems,
    "gsm_symbolic": _gsm_symbolic,
    "arithmetic": _arithmetic,
    "gsm8k": _gsm8k,
}
