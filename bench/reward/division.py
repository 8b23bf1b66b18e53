"""Which work goes into which pass, and to which of two workers: pure, so that it can be tested by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from acemath_reward.batching import SLACK
from bench.reward.groups import Group, Ids

Place = tuple[int, int]
"""Which group, which of its candidates."""


@dataclass(slots=True)
class Part:
    """Candidates of one prompt in one pass.

    Attributes:
        prompt: their shared ids.
        places: for each candidate all places that its score belongs to.
    """

    prompt: Ids
    places: dict[int, list[Place]] = field(default_factory=dict)
    own: list[Ids] = field(default_factory=list)

    def add(self, own: Ids, places: list[Place]) -> None:
        """One more candidate."""
        self.places[len(self.own)] = places
        self.own.append(own)


def passes(groups: Sequence[Group], budget: int, *, share: bool = True, dedup: bool = True) -> list[list[Part]]:
    """Forward passes of at most `budget` tokens, in order; a longer sequence goes alone.

    Args:
        groups: what is to be scored.
        budget: tokens of a pass, a shared prompt counted once in each.
        share: whether candidates of a pass share their prompt.
        dedup: whether equal candidates of a group are scored once.
    """
    found: list[list[Part]] = [[]]
    room = budget = _budget(groups, budget, share=share, dedup=dedup)
    for which, group in enumerate(groups):
        part: Part | None = None
        for own, places in _distinct(which, group, dedup):
            fresh = part is None or not share
            need = len(own) + (len(group.prompt) if fresh else 0)
            if need > room and found[-1]:
                found.append([])
                fresh, room, need = True, budget, len(own) + len(group.prompt)
            if fresh or part is None:
                part = Part(group.prompt)
                found[-1].append(part)
            part.add(own, places)
            room -= need
    return found


def _budget(groups: Sequence[Group], budget: int, *, share: bool, dedup: bool) -> int:
    """As the service: a little more where that saves a last small pass."""
    everything = 0
    for which, group in enumerate(groups):
        own = [len(ids) for ids, _ in _distinct(which, group, dedup)]
        everything += sum(own) + len(group.prompt) * (1 if share else len(own))
    return everything if everything <= budget * (1 + SLACK) else budget


def _distinct(which: int, group: Group, dedup: bool) -> list[tuple[Ids, list[Place]]]:
    if not dedup:
        return [(own, [(which, index)]) for index, own in enumerate(group.candidates)]
    places: dict[Ids, list[Place]] = {}
    for index, own in enumerate(group.candidates):
        places.setdefault(own, []).append((which, index))
    return list(places.items())


def shares(groups: Sequence[Group], workers: int) -> list[list[tuple[int, list[int]]]]:
    """For each worker the groups, and which of their candidates, that it scores; about the same tokens for each.

    The longest comes first, to whoever has least (Graham 1969). A group that is more than its share is cut, with its
    duplicates together; the prompt is then computed by every worker that has a piece.
    """
    fair = sum(group.useful for group in groups) / workers
    pieces = [(which, piece) for which, group in enumerate(groups) for piece in _pieces(group, fair, workers)]
    pieces.sort(key=lambda one: -groups[one[0]].only(one[1]).useful)
    given: list[list[tuple[int, list[int]]]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for which, piece in pieces:
        least = loads.index(min(loads))
        given[least].append((which, piece))
        loads[least] += groups[which].only(piece).useful
    return given


def _pieces(group: Group, fair: float, workers: int) -> list[list[int]]:
    """The candidates of a group, cut into as many pieces as there are workers if it is more than a fair share."""
    if group.useful <= fair:
        return [list(range(len(group.candidates)))]
    places = [[index for _, index in where] for _, where in _distinct(0, group, True)]
    places.sort(key=lambda indexes: -len(group.candidates[indexes[0]]))
    pieces: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for indexes in places:
        least = loads.index(min(loads))
        pieces[least] += indexes
        loads[least] += len(group.candidates[indexes[0]])
    return [piece for piece in pieces if piece]
