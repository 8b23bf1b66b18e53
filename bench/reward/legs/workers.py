"""The reward engine in several processes of one thread each, problems divided by their tokens."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from bench.reward.division import shares
from bench.reward.groups import Group, Scores
from bench.reward.legs import ours
from bench.reward.worker import Options

START_SECONDS = 300.0
END_SECONDS = 10.0


class Workers:
    """The processes; this one only divides and collects.

    Args:
        options: of `ours.create`, with how many `workers`.
    """

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(options["workers"]):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, options), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)
        facts = [self._hear(end) for end in self._ends]
        self.facts: dict[str, Any] = facts[0] | {"workers": len(facts)}

    def _hear(self, end: Connection) -> Any:
        """What a worker says; its failure is ours."""
        if not end.poll(START_SECONDS):
            raise RuntimeError(f"a worker is silent for {START_SECONDS:.0f} s")
        found = end.recv()
        if isinstance(found, Exception):
            raise found
        return found

    def prepare(self, options: Options) -> None:
        """Nothing to do."""

    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """Each worker its share, all at once."""
        given = shares(groups, len(self._ends))
        for end, share in zip(self._ends, given, strict=True):
            end.send(([groups[which].only(piece) for which, piece in share], options))
        scores = [[0.0] * len(group.candidates) for group in groups]
        for end, share in zip(self._ends, given, strict=True):
            for (which, piece), values in zip(share, self._hear(end), strict=True):
                for index, value in zip(piece, values, strict=True):
                    scores[which][index] = value
        return scores

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(END_SECONDS)


def serve(end: Connection, options: Options) -> None:
    """A worker: load, then score what comes until nobody is there."""
    try:
        engine = ours.create(options)
        end.send(engine.facts)
    except Exception as error:
        end.send(error)
        raise
    while True:
        try:
            groups, how = end.recv()
        except EOFError:
            return
        end.send(engine.score(groups, how) if groups else [])


def create(options: Options) -> Workers:
    """See `bench.reward.worker`."""
    return Workers(options)
