"""Make the sets S1 to S6 from pools of candidates; see README.md for what each is and how it is made.

A pool is JSON Lines, plain or gzip: {"problem": text, "candidates": [{"text": text}, …]}, `family` optional.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from acemath_core.prompts import reward_context, reward_messages
from acemath_prompts import PromptEncoder
from bench.reward.groups import Group
from bench.reward.sets import write_hashes, write_set

SEED = 20
SHOTS = 6
TAIL_PARTS = 10


@dataclass(frozen=True, slots=True)
class Drawn:
    """One problem of a pool with texts to score."""

    problem: str
    family: str
    texts: tuple[str, ...]

    @property
    def distinct(self) -> tuple[str, ...]:
        """Its texts without repetition, in order."""
        return tuple(dict.fromkeys(self.texts))


def read_pool(path: Path) -> Iterator[Drawn]:
    """The problems of a pool."""
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            texts = tuple(candidate["text"] for candidate in row["candidates"])
            yield Drawn(row["problem"], str(row.get("family", "")), texts)


def encode(encoder: PromptEncoder, problem: str, texts: Sequence[str]) -> Group:
    """The ids that the service would score; a candidate that changes the prompt's ids is an error.

    Raises:
        ValueError: the prompt's ids are not the beginning of a candidate's.
    """
    prompt = encoder.encode_prompt(reward_context([{"role": "user", "content": problem}]))
    whole = [encoder.encode_conversation(reward_messages(problem, text)) for text in texts]
    if any(ids[: len(prompt)] != prompt for ids in whole):
        raise ValueError(f"a candidate of {problem[:60]!r} changes how its prompt is tokenised")
    return Group(problem, tuple(prompt), tuple(texts), tuple(tuple(ids[len(prompt) :]) for ids in whole))


def pool_set(path: Path, encoder: PromptEncoder, problems: int = 25, candidates: int = 8) -> list[Group]:
    """The first problems of a pool that have so many candidates, with their first ones."""
    enough = (drawn for drawn in read_pool(path) if len(drawn.texts) >= candidates)
    first = itertools.islice(enough, problems)
    return [encode(encoder, drawn.problem, drawn.texts[:candidates]) for drawn in first]


def make_sets(pools: Sequence[Path], encoder: PromptEncoder, folder: Path) -> dict[str, list[Group]]:
    """Write every set and the hashes; gives the sets."""
    drawn = [one for path in pools for one in read_pool(path)]
    random.Random(SEED).shuffle(drawn)
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[Group]] = {}
    hashes: dict[str, str] = {}
    for name, (about, make) in MAKERS.items():
        made[name] = [encode(encoder, one.problem, one.texts) for one in make(drawn)]
        hashes[name] = write_set(folder, name, about, made[name])
    write_hashes(folder, hashes)
    return made


def _varied(drawn: Sequence[Drawn], count: int, start: int = 0) -> list[Drawn]:
    """Problems with eight distinct candidates each."""
    varied = [Drawn(one.problem, one.family, one.distinct[:8]) for one in drawn if len(one.distinct) >= 8]
    return _exactly(varied[start : start + count], count)


def _many(drawn: Sequence[Drawn]) -> list[Drawn]:
    """64 distinct texts of problems of one family, put under one of them; small families are put together."""
    by_family: dict[str, list[Drawn]] = {}
    for one in drawn:
        by_family.setdefault(one.family, []).append(one)
    found: list[Drawn] = []
    texts: dict[str, None] = {}
    head: Drawn | None = None
    for one in itertools.chain.from_iterable(by_family.values()):
        head = head or one
        texts |= dict.fromkeys(one.distinct)
        if len(texts) >= 64:
            found.append(Drawn(head.problem, head.family, tuple(texts)[:64]))
            texts, head = {}, None
    return _exactly(found[:20], 20)


def _long_tail(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Seven candidates, and one that is several solutions one after the other."""
    others = [text for one in drawn for text in one.distinct]
    found = []
    for index, one in enumerate(_varied(drawn, 12, 50)):
        joined = "\n\n".join(others[index * TAIL_PARTS : (index + 1) * TAIL_PARTS])
        found.append(Drawn(one.problem, one.family, (*one.texts[:3], joined, *one.texts[3:7])))
    return found


def _duplicates(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Six distinct candidates, two of which come twice."""
    varied = _varied(drawn, 25, 70)
    return [Drawn(one.problem, one.family, (*one.texts[:6], one.texts[1], one.texts[4])) for one in varied]


def _prompt_heavy(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Solved examples in front of the problem, in the one user turn."""
    solved = [one for one in drawn if len(one.distinct) == 1]
    found = []
    for index, one in enumerate(_varied(drawn, 12, 100)):
        shots = solved[index * SHOTS : (index + 1) * SHOTS]
        examples = "".join(f"Problem: {shot.problem}\nSolution: {shot.texts[0]}\n\n" for shot in shots)
        found.append(Drawn(f"{examples}Problem: {one.problem}", one.family, one.texts))
    return found


def _exactly(found: list[Drawn], count: int) -> list[Drawn]:
    if len(found) < count:
        raise ValueError(f"the pools give {len(found)} of {count} problems; they need more distinct candidates")
    return found


MAKERS: dict[str, tuple[str, Callable[[Sequence[Drawn]], list[Drawn]]]] = {
    "S1": ("one problem, 8 distinct candidates", lambda drawn: _varied(drawn, 1)),
    "S2": ("50 problems, 8 distinct candidates each", lambda drawn: _varied(drawn, 50)),
    "S3": ("20 problems, 64 distinct candidates each, of several problems of a family", _many),
    "S4": ("12 problems, 8 candidates, one of them several solutions long", _long_tail),
    "S5": ("25 problems, 8 candidates, a quarter of them exact duplicates", _duplicates),
    "S6": ("12 problems behind six solved examples, 8 distinct candidates each", _prompt_heavy),
}
