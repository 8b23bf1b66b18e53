"""Which benchmark problems a trained template could have written.

`gsm_symbolic`'s templates are problems of GSM8K's test set with slots for names and numbers (Mirzadeh et al., arXiv
2410.05229), so a model that trains on them must not be measured on those problems. A benchmark row is dropped when it
shares a run of six words, numbers masked, with an instance of any template, held out or not: this drops more than the
sources, never less.
"""

import re
from collections.abc import Iterable, Iterator

from acemath_training.data import gsm_symbolic

NGRAM = 6
_NUMBER = re.compile(r"\b\d[\d,.]*")
_NOT_WORD = re.compile(r"[^a-z#]+")
_SEED, _INSTANCES = 5, 1200  # about fourteen of each template: names and phrases vary, the runs between them stay


class TemplateOverlap:
    """Knows the templates' runs of words.

    Args:
        instances: texts written by the templates; by default those of every usable template of gsm_symbolic.
    """

    def __init__(self, instances: Iterable[str] | None = None) -> None:
        texts = _gsm_symbolic() if instances is None else instances
        self._runs = {run for text in texts for run in runs(text)}

    def touches(self, problem: str) -> bool:
        """Whether `problem` shares a run of six words with an instance."""
        return any(run in self._runs for run in runs(problem))


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of six words in lower case, numbers as `#`; a shorter text is one run."""
    words = tuple(_NOT_WORD.sub(" ", _NUMBER.sub(" # ", text.lower())).split())
    for start in range(max(1, len(words) - NGRAM + 1)):
        yield words[start : start + NGRAM]


def _gsm_symbolic() -> Iterator[str]:
    data = gsm_symbolic.dataset(_SEED, _INSTANCES)
    return (gsm_symbolic.question_of(data[index]) for index in range(_INSTANCES))
