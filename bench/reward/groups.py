"""What every system scores: a prompt and its candidates as token ids, with the texts they came from.

Standard library only: the interpreter of a competitor's own environment imports it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Ids = tuple[int, ...]
Scores = list[list[float]]


@dataclass(frozen=True, slots=True)
class Group:
    """One problem.

    Attributes:
        problem: its text, for systems that take texts.
        prompt: ids of the rendered conversation up to where a candidate begins.
        texts: the candidates' texts.
        candidates: ids of each candidate behind the prompt, the template's end included.
    """

    problem: str
    prompt: Ids
    texts: tuple[str, ...]
    candidates: tuple[Ids, ...]

    @property
    def useful(self) -> int:
        """Tokens that must be computed: the prompt once and every distinct candidate once."""
        return len(self.prompt) + sum(map(len, set(self.candidates)))

    @property
    def with_duplicates(self) -> int:
        """The same, with every candidate as often as it is given."""
        return len(self.prompt) + sum(map(len, self.candidates))

    def only(self, indexes: Iterable[int]) -> Group:
        """The same prompt with some of its candidates, in the given order; an index may come twice."""
        chosen = list(indexes)
        texts, ids = tuple(self.texts[i] for i in chosen), tuple(self.candidates[i] for i in chosen)
        return Group(self.problem, self.prompt, texts, ids)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return {
            "problem": self.problem,
            "prompt": self.prompt,
            "candidates": [{"text": t, "ids": i} for t, i in zip(self.texts, self.candidates, strict=True)],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Group:
        """One problem of a set's file or of a request."""
        candidates = row["candidates"]
        texts, ids = tuple(c["text"] for c in candidates), tuple(tuple(c["ids"]) for c in candidates)
        return cls(row["problem"], tuple(row["prompt"]), texts, ids)


def useful_tokens(groups: Sequence[Group]) -> int:
    """Of all groups."""
    return sum(group.useful for group in groups)


def candidate_count(groups: Sequence[Group]) -> int:
    """Of all groups, duplicates included."""
    return sum(len(group.candidates) for group in groups)


def beginning(groups: Sequence[Group], tokens: int) -> list[Group]:
    """The first groups that have together about so many useful tokens, one at least; all of them for 0."""
    taken: list[Group] = []
    for group in groups:
        if tokens and taken and useful_tokens([*taken, group]) > tokens:
            break
        taken.append(group)
    return taken


def sequences(groups: Sequence[Group]) -> list[Ids]:
    """Every candidate behind its own copy of the prompt, in order."""
    return [group.prompt + own for group in groups for own in group.candidates]


def folded(values: Sequence[float], groups: Sequence[Group]) -> Scores:
    """Flat scores by group."""
    found, start = [], 0
    for group in groups:
        found.append(list(values[start : start + len(group.candidates)]))
        start += len(group.candidates)
    return found
