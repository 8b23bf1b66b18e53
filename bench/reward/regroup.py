"""The same candidates handed over differently: how many scores keep their bits?"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bench.reward.groups import Group, Scores

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Regrouping:
    """The calls, and which candidate each score of them belongs to.

    Attributes:
        name: for the table.
        calls: what is scored together.
        places: group and candidate of every score, in the order of calls, groups and candidates.
    """

    name: str
    calls: list[list[Group]]
    places: list[Place]


def regroupings(groups: Sequence[Group]) -> list[Regrouping]:
    """Another order, each candidate by itself, beside its own duplicate, and in calls of other sizes."""
    places = [(g, c) for g, group in enumerate(groups) for c in range(len(group.candidates))]
    return [
        _permuted(groups),
        Regrouping("alone", [[groups[g].only([c])] for g, c in places], places),
        _duplicated(groups),
        _in_calls(groups, places, 3),
        _in_calls(groups, places, 11),
    ]


def changed(base: Scores, regrouping: Regrouping, found: Sequence[Scores]) -> int:
    """How many scores have other bits than in `base`."""
    flat = [value for call in found for row in call for value in row]
    pairs = zip(regrouping.places, flat, strict=True)
    return sum(_bits(base[g][c]) != _bits(value) for (g, c), value in pairs)


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


def _permuted(groups: Sequence[Group]) -> Regrouping:
    draw = random.Random(5)
    order = draw.sample(range(len(groups)), len(groups))
    inner = {g: draw.sample(range(len(groups[g].candidates)), len(groups[g].candidates)) for g in order}
    places = [(g, c) for g in order for c in inner[g]]
    return Regrouping("permuted", [[groups[g].only(inner[g]) for g in order]], places)


def _duplicated(groups: Sequence[Group]) -> Regrouping:
    """Every candidate twice, so that mates and batch sizes are others too."""
    twice = [[c for c in range(len(group.candidates)) for _ in range(2)] for group in groups]
    places = [(g, c) for g, indexes in enumerate(twice) for c in indexes]
    return Regrouping("with duplicates", [[g.only(i) for g, i in zip(groups, twice, strict=True)]], places)


def _in_calls(groups: Sequence[Group], places: Sequence[Place], size: int) -> Regrouping:
    """Neighbours of two problems may share a call."""
    calls = []
    for start in range(0, len(places), size):
        chosen = places[start : start + size]
        which = dict.fromkeys(g for g, _ in chosen)
        calls.append([groups[g].only([c for other, c in chosen if other == g]) for g in which])
    return Regrouping(f"in calls of {size}", calls, list(places))
