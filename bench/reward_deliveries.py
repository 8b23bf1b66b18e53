"""Ten thousand ways to hand over real candidates: does a score ever change a bit?

    python -m bench.reward_deliveries CHECKPOINT --set S2 [--candidates FILE.jsonl[.gz] …] --out FILE.json

Each candidate's score alone, in one piece, by one worker, is the reference. Then each delivery draws some candidates of
one to three problems, their order, which of them come whole and which in pieces of random lengths, how many workers
share them and who gets which, how many threads share a worker's passes, and in which passes they are computed: a pass
holds any mixture of whole groups and of cells of several live sessions. Every score is compared with its reference, bit
for bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import struct
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from acemath_prompts import PromptEncoder
from acemath_reward.engine.device import place
from acemath_reward.engine.model import RewardEngine, load_engine
from acemath_reward.ports import Cell, LiveSession, PromptGroup, TokenIds
from bench.reward import machine
from bench.reward.record import say
from bench.reward.sets import FOLDER, read_set
from bench.reward_exactness import encode, read_problems

MOST_CANDIDATES = 3
CHUNK = 8
SAY_EVERY = 250

Key = tuple[int, int]
"""Which problem, which of its candidates."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker gets of a delivery.

    Attributes:
        seed: of all that it draws: orders, pieces, passes.
        keys: the candidates.
    """

    seed: int
    keys: tuple[Key, ...]


@dataclass(slots=True)
class Live:
    """A session of one problem whose candidates are still to be handed over."""

    problem: int
    session: LiveSession
    left: dict[int, list[TokenIds]]


@dataclass(slots=True)
class Worker:
    """One process: an engine and the candidates."""

    engine: RewardEngine
    groups: Sequence[PromptGroup]
    scores: dict[Key, float] = field(default_factory=dict)

    def alone(self, key: Key) -> float:
        """The reference."""
        group = self.groups[key[0]]
        return self.engine.score([PromptGroup(group.prompt, (group.candidates[key[1]],))])[0][0]

    def deliver(self, share: Share) -> tuple[dict[Key, float], str]:
        """The scores, and how they were handed over: whole, in pieces, or mixed."""
        draw, self.scores = random.Random(share.seed), {}
        in_pieces = {key for key in share.keys if draw.random() < 0.5}
        sessions = [self._open(draw, number, in_pieces) for number in dict.fromkeys(key[0] for key in in_pieces)]
        whole = [key for key in share.keys if key not in in_pieces]
        while whole or any(live.left for live in sessions) or len(self.scores) < len(share.keys):
            for live in sessions:
                self._hand_over(draw, live)
            whole = self._pass(draw, whole, sessions)
        for live in sessions:
            live.session.close()
        kind = "mixed" if in_pieces and len(in_pieces) < len(share.keys) else ("pieces" if in_pieces else "whole")
        return self.scores, kind

    def _open(self, draw: random.Random, number: int, keys: Iterable[Key]) -> Live:
        group = self.groups[number]
        mine = {c: _pieces(draw, group.candidates[c]) for n, c in sorted(keys) if n == number}
        return Live(number, self.engine.open(group.prompt), mine)

    def _hand_over(self, draw: random.Random, live: Live) -> None:
        """Some pieces of some candidates."""
        for candidate in draw.sample(sorted(live.left), draw.randint(0, len(live.left))):
            if live.left[candidate]:
                live.session.extend(candidate, live.left[candidate].pop(0))
            if not live.left[candidate]:
                live.session.finish(candidate)
                del live.left[candidate]

    def _pass(self, draw: random.Random, whole: list[Key], sessions: Sequence[Live]) -> list[Key]:
        """One forward pass over some of what is there; the whole candidates that are left."""
        now = draw.sample(whole, draw.randint(0, len(whole)))
        cells: list[tuple[Cell, Key | None]] = []
        for number in dict.fromkeys(key[0] for key in now):
            cells += self._of_group(number, [key for key in now if key[0] == number])
        for live in sessions:
            if draw.random() < 0.8:
                cells += [(due.cell, (live.problem, due.candidate or 0)) for due in live.session.due()]
        values = self.engine.forward([cell for cell, _ in cells])
        for (cell, key), value in zip(cells, values, strict=True):
            if cell.scored and key is not None and value is not None:
                self.scores[key] = value
        return [key for key in whole if key not in now]

    def _of_group(self, number: int, keys: Sequence[Key]) -> list[tuple[Cell, Key | None]]:
        group = self.groups[number]
        cells = self.engine.plan(PromptGroup(group.prompt, tuple(group.candidates[c] for _, c in keys)))
        names = iter(keys)
        return [(cell, next(names) if cell.scored else None) for cell in cells]


def _pieces(draw: random.Random, own: TokenIds) -> list[TokenIds]:
    cuts = sorted({0, len(own), *(draw.randrange(1, len(own)) for _ in range(draw.randint(0, 5)) if len(own) > 1)})
    return [own[a:b] for a, b in itertools.pairwise(cuts)]


def delivery(draw: random.Random, keys: Sequence[Key], workers: int) -> list[Share]:
    """Candidates of one to three problems, divided among some of the workers."""
    known = sorted({key[0] for key in keys})
    problems = draw.sample(known, draw.randint(1, min(3, len(known))))
    mine = [key for key in keys if key[0] in problems]
    chosen = draw.sample(mine, draw.randint(1, min(MOST_CANDIDATES, len(mine))))
    count = draw.randint(1, workers)
    parts = [tuple(chosen[start::count]) for start in range(count)]
    return [Share(draw.getrandbits(32), part) for part in parts if part]


_worker: list[Worker] = []  # made by `_start` in each process: with one thread, two, …


def _start(checkpoint: Path, groups: Sequence[PromptGroup], threads: int) -> None:
    for number in range(1, threads + 1):
        _worker.append(Worker(load_engine(checkpoint, place("cpu", "auto", threads=number)), groups))


def _alone(key: Key) -> float:
    return _worker[0].alone(key)


def _deliver(numbered: tuple[int, Share]) -> tuple[int, dict[Key, float], str]:
    number, share = numbered
    return number, *_worker[share.seed % len(_worker)].deliver(share)


def measure(pool: Pool, keys: Sequence[Key], count: int, workers: int) -> dict[str, Any]:
    """All deliveries; shares of one delivery are computed by whichever worker is free, at the same time as others."""
    reference = dict(zip(keys, pool.imap(_alone, keys, chunksize=1), strict=True))
    draw, shares, used = random.Random(11), [], Counter[int]()
    for number in range(count):
        parts = delivery(draw, keys, workers)
        used[len(parts)] += 1
        shares += [(number, part) for part in parts]
    kinds, compared, differing = Counter[str](), 0, 0
    for done, (_, scores, kind) in enumerate(pool.imap_unordered(_deliver, shares, chunksize=CHUNK), 1):
        kinds[kind] += 1
        compared += len(scores)
        differing += sum(_bits(value) != _bits(reference[key]) for key, value in scores.items())
        if done % SAY_EVERY == 0 or done == len(shares):
            say(f"{done}/{len(shares)} shares, {compared} scores compared, {differing} with other bits")
    return {
        "deliveries": count,
        "by_number_of_workers": {str(number): used[number] for number in sorted(used)},
        "shares_by_kind": dict(sorted(kinds.items())),
        "scores_compared": compared,
        "scores_with_other_bits": differing,
        "smallest_reference": min(reference.values()),
        "largest_reference": max(reference.values()),
    }


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


def read_groups(options: argparse.Namespace) -> list[PromptGroup]:
    """Of all sets and files, so many problems of each."""
    groups = []
    for name in options.set:
        for group in read_set(FOLDER, name)[: options.problems]:
            groups.append(PromptGroup(group.prompt, group.candidates[: options.per_problem]))
    encoder = PromptEncoder.from_directory(options.checkpoint)
    for file in options.candidates:
        groups += [encode(encoder, one) for one in read_problems(file, options.problems, options.per_problem)]
    return groups


def _shorter(group: PromptGroup, longest: int) -> PromptGroup:
    """Its candidates of at most so many tokens: ten thousand deliveries are to take minutes."""
    return PromptGroup(group.prompt, tuple(own for own in group.candidates if len(own) <= longest))


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--set", action="append", default=[], help="a frozen set of bench/reward, e.g. S2")
    parser.add_argument("--candidates", type=Path, action="append", default=[], help="may be given several times")
    parser.add_argument("--problems", type=int, default=12, help="of each file")
    parser.add_argument("--per-problem", type=int, default=4)
    parser.add_argument("--longest", type=int, default=100, help="tokens of a candidate; longer ones are left out")
    parser.add_argument("--deliveries", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=3, help="processes")
    parser.add_argument("--threads", type=int, default=2, help="most of a process; a share is computed by one or more")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    groups = [_shorter(group, options.longest) for group in read_groups(options)]
    keys = [(number, c) for number, group in enumerate(groups) for c in range(len(group.candidates))]
    began, context = time.monotonic(), multiprocessing.get_context("spawn")
    with context.Pool(options.workers, partial(_start, options.checkpoint, groups, options.threads)) as pool:
        found = measure(pool, keys, options.deliveries, options.workers)
    facts = {"checkpoint": options.checkpoint.name, "candidates": len(keys), "problems": len(groups)}
    facts |= {"from": [*options.set, *(file.name for file in options.candidates)]}
    facts |= {"workers": options.workers, "threads": options.threads}
    result = facts | found | {"seconds": round(time.monotonic() - began, 1), "machine": machine.described()}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    say(f"{found['scores_with_other_bits']} of {found['scores_compared']} scores have other bits; {options.out}")
    raise SystemExit(1 if found["scores_with_other_bits"] else 0)


if __name__ == "__main__":
    main()
