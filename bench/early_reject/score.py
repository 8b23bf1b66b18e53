"""Scores of beginnings: each candidate whole, and cut after some of its tokens as if it were complete.

The text is encoded as the reward service does it, cut after T of its ids, and closed as the template closes a turn:
`POST /v1/score` with those ids gives the same bits. Cuts are asked for only of candidates that go on behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acemath_core.prompts import reward_context
from acemath_core.wire import TokenCandidate
from acemath_evaluation.journal import Journal, read_entries
from acemath_evaluation.rows import load_pools
from acemath_reward.encoding import Vocabulary, encode_candidates
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.ports import PromptGroup, RewardModel, TokenIds
from acemath_reward.versions import load
from bench.recorded.pools import JOURNAL


@dataclass(frozen=True)
class Row:
    """One problem: texts of its candidates, and their tokens with the end of turn where they were counted."""

    id: str
    problem: str
    texts: Sequence[str]
    tokens: Sequence[int] | None


class Scorer:
    """The reward engine in this process, in bfloat16 on one thread.

    Args:
        checkpoint: a published version's directory.
        cuts: after how many tokens candidates are cut.
    """

    def __init__(self, checkpoint: Path, cuts: Sequence[int]) -> None:
        placement = place("cpu", "bfloat16", threads=1)
        engine, self._vocabulary = load(checkpoint, checkpoint.name, lambda path: load_engine(path, placement), 1)
        self._model: RewardModel = engine.model
        self._cuts = tuple(cuts)

    def record(self, row: Row) -> dict[str, Any]:
        """Tokens, scores and scores of beginnings of one problem, as a journal keeps them."""
        ids = [text_ids(self._vocabulary, row.problem, text) for text in row.texts]
        tokens = list(row.tokens or [len(own) + 1 for own in ids])
        cuts = [[cut for cut in self._cuts if cut < length] for length in tokens]
        beginnings = [own[:cut] for own, of_one in zip(ids, cuts, strict=True) for cut in of_one]
        found = iter(self._score(row.problem, [*row.texts, *beginnings]))
        scores = [next(found) for _ in row.texts]
        drafts = [{str(cut): next(found) for cut in of_one} for of_one in cuts]
        return {"id": row.id, "tokens": tokens, "scores": scores, "drafts": drafts}

    def _score(self, problem: str, candidates: Sequence[str | list[int]]) -> list[float]:
        """Equal candidates are computed once; one that begins with the template's newline has its own prompt."""
        context = reward_context([{"role": "user", "content": problem}])
        named = [(str(i), c if isinstance(c, str) else TokenCandidate(token_ids=c)) for i, c in enumerate(candidates)]
        encoded, _ = encode_candidates(context, named, self._vocabulary, "problem")
        prompts: dict[TokenIds, dict[TokenIds, None]] = {}
        for one in encoded:
            prompts.setdefault(one.prompt, {})[one.own] = None
        groups = [PromptGroup(prompt, tuple(own)) for prompt, own in prompts.items()]
        scores = self._model.score(groups)
        known = {
            (group.prompt, own): score
            for group, row in zip(groups, scores, strict=True)
            for own, score in zip(group.candidates, row, strict=True)
        }
        return [known[one.prompt, one.own] for one in encoded]


def text_ids(vocabulary: Vocabulary, problem: str, text: str) -> list[int]:
    """Ids of a candidate's text alone, as they stand in the whole conversation."""
    context = reward_context([{"role": "user", "content": problem}])
    encoder = vocabulary.encoder
    before, after = len(encoder.encode_prompt(context)), len(encoder.turn_end(context))
    whole = encoder.encode_turn(encoder.open_turn(context), text)
    return whole[before : len(whole) - after]


def rows_of(path: Path) -> Iterator[Row]:
    """The problems of a journal of `acemath eval run`, or of a file of pools."""
    if path.name.endswith(JOURNAL):
        for record in read_entries(path)[1].records.values():
            found = record["candidates"]
            texts, tokens = [c["text"] or "" for c in found], [c["completion_tokens"] for c in found]
            yield Row(record["id"], record["problem"], texts, tokens)
    else:
        for pool in load_pools(path):
            yield Row(pool.id, pool.problem, [c.text for c in pool.candidates], None)


def score_file(path: Path, target: Path, checkpoint: Path, cuts: Sequence[int], at_most: int | None) -> None:
    """Append what is missing in `target` for the (first) problems of a file; prints progress.

    Raises:
        JournalError: `target` was made with another checkpoint or other cuts.
    """
    rows = list(rows_of(path))[:at_most]
    with Journal(target, {"kind": "drafts", "reward": checkpoint.name, "cuts": list(cuts)}) as journal:
        left = [row for row in rows if row.id not in journal.records]
        scorer = Scorer(checkpoint, cuts) if left else None
        for number, row in enumerate(left, len(rows) - len(left) + 1):
            assert scorer is not None, "there is something to score"
            journal.append(scorer.record(row))
            if number % 10 == 0 or number == len(rows):
                print(f"{path.name}: {number} of {len(rows)} problems scored", flush=True)
