"""Which families are trained on and which are held out: drawn once with a fixed seed, before any training.

`splits.json` is committed. Held-out families are never used for training, sampling, early stopping or
choosing a checkpoint; only the evaluation reads them. `python -m acemath_training.data.splits` prints
the draw again, so anyone can check that the file is that draw.
"""

import json
import random
import sys
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from acemath_training.data import gsm_symbolic, word_problems
from acemath_training.errors import DataError

SEED = 20261121
HELD_OUT_GSM_SYMBOLIC = 20
HELD_OUT_WORD_PROBLEMS = 14
HELD_OUT_STORIES = 16


class Splits(BaseModel):
    """The held-out families by source; every other family of these sources is for training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    held_out: dict[str, tuple[str, ...]]

    def is_held_out(self, source: str, family: str) -> bool:
        """Whether a family must not be trained on."""
        return family in self.held_out.get(source, ())

    def training(self, source: str, every: list[str]) -> list[str]:
        """The families of `every` that may be trained on, in the same order."""
        return [family for family in every if not self.is_held_out(source, family)]


@cache
def load() -> Splits:
    """The committed split.

    Raises:
        DataError: when `splits.json` is missing or malformed.
    """
    file = resources.files("acemath_training.data") / "splits.json"
    try:
        return Splits.model_validate_json(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"the committed split cannot be read: {error}") from error


def draw_splits() -> Splits:
    """The draw that `splits.json` records: a function of `SEED` and the sorted family names only.

    Families that came later have a draw of their own, made before they were first trained on, so that what was held
    out before stays held out.
    """
    rng = random.Random(SEED)
    symbolic = sorted(str(template) for template in gsm_symbolic.template_ids())
    own = sorted(word_problems.families(word_problems.FIRST_FILES))
    stories = sorted(word_problems.families(word_problems.LATER_FILES))
    return Splits(
        seed=SEED,
        held_out={
            gsm_symbolic.SOURCE: tuple(sorted(rng.sample(symbolic, HELD_OUT_GSM_SYMBOLIC), key=int)),
            word_problems.SOURCE: (
                *sorted(rng.sample(own, HELD_OUT_WORD_PROBLEMS)),
                *sorted(random.Random(f"{SEED}:stories").sample(stories, HELD_OUT_STORIES)),
            ),
        },
    )


if __name__ == "__main__":
    json.dump(draw_splits().model_dump(), sys.stdout, indent=1)
    sys.stdout.write("\n")
