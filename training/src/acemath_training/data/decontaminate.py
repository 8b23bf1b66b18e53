"""Keeping test problems out of training data: exact hashes and shared runs of 13 words.

The rule of AceMath (arXiv 2412.15084, section 3.2.3): text is normalised, and a prompt that shares 13
consecutive words with a test item is dropped. The paper also asks for a longest common subsequence over
60 % before a maths prompt is dropped; leaving that condition out drops more, never less.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator

NGRAM = 13
_NOT_WORD = re.compile(r"[^a-z0-9]+")
_SPACE = re.compile(r"\s+")


class Decontaminator:
    """Knows the test problems; says whether a training problem touches one."""

    def __init__(self, test_problems: Iterable[str] = (), hashes: Iterable[str] = ()) -> None:
        """Take the test problems' texts, and sha256 digests of test statements that must stay unseen."""
        self._ngrams = {ngram for text in test_problems for ngram in ngrams(text)}
        self._hashes = frozenset(hashes)

    def touches(self, problem: str) -> bool:
        """Whether `problem` shares 13 words with a test problem or equals a held-out statement."""
        if any(digest in self._hashes for digest in statement_hashes(problem)):
            return True
        return any(ngram in self._ngrams for ngram in ngrams(problem))


def ngrams(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of 13 normalised words; a shorter text is one run of all its words."""
    words = tuple(_NOT_WORD.sub(" ", text.lower()).split())
    if len(words) <= NGRAM:
        yield words
        return
    yield from (words[start : start + NGRAM] for start in range(len(words) - NGRAM + 1))


def statement_hashes(text: str) -> Iterator[str]:
    """sha256 of a statement under each usual normalisation, since a hash list rarely names its own."""
    collapsed = _SPACE.sub(" ", text).strip()
    lowered = collapsed.lower()
    words = _NOT_WORD.sub(" ", lowered).strip()
    for form in dict.fromkeys((text, collapsed, lowered, words, words.replace(" ", ""))):
        yield hashlib.sha256(form.encode()).hexdigest()
