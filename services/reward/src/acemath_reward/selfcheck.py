"""Two questions to a freshly loaded version: is it the one that was trained, and are its scores free of their batch?

What the manifest's `canary` holds says `acemath_registry.canary_cases`. A missing tensor, swapped layers or another
head move scores by more than rounding does; the difference allowed is a share of the range of the canary's own scores.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import JsonValue, ValidationError

from acemath_prompts import PromptEncoder, check_rendering
from acemath_registry.canary_cases import RewardCanary, RewardCase
from acemath_reward.ports import LiveSession, PromptGroup, RewardModel, TokenIds

_T = TypeVar("_T")
_SMALLEST_TOLERANCE = 0.05  # logits; below lies what bfloat16 rounding does to canaries of similar scores
_LENGTHS = (1, 7, 33, 130)


class CanaryMismatch(Exception):
    """The scores are not those of the manifest, or the manifest's canary cannot be read."""


class OnEngineThread(Protocol):
    """`Batcher.call`."""

    async def __call__(self, function: Callable[[], _T]) -> _T:
        """The function's result."""
        ...


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the checks found, as `/readyz?verbose` shows it.

    Attributes:
        batch_invariant: every probe had the same bits alone, with mates, in another order and handed over in pieces;
            None where nothing is promised and so nothing was asked.
        canary_difference: largest |difference| from the manifest's scores; None without a canary.
    """

    batch_invariant: bool | None
    canary_difference: float | None


async def check(
    model: RewardModel, canary: Mapping[str, JsonValue] | None, tolerance: float, run: OnEngineThread
) -> CheckResult:
    """Run both checks on the engine's thread, a batch at a time, so that traffic on another version goes on between.

    Args:
        model: the loaded version.
        canary: the manifest's, if it has one.
        tolerance: allowed |difference|, as a share of the range of the canary's scores.
        run: runs a function on the engine's thread.

    Raises:
        CanaryMismatch: over the tolerance, or malformed.
    """
    difference = None if canary is None else await _canary_difference(model, canary, tolerance, run)
    promised = model.server is None
    return CheckResult(await _invariant(model, run) if promised else None, difference)


def check_prompts(encoder: PromptEncoder, canary: Mapping[str, JsonValue] | None) -> None:
    """Whether tokenizer and chat template are those of the trainer; blocks for milliseconds.

    Args:
        encoder: the loaded version's.
        canary: the manifest's, if it has one.

    Raises:
        CanaryMismatch: the canary is malformed.
        TemplateError: they make other ids of a conversation of the canary, or refuse it.
    """
    cases = _parse(canary) if canary is not None else ()
    told = [(case.messages, case.token_ids) for case in cases if case.messages]
    check_rendering(encoder, told)


async def _canary_difference(
    model: RewardModel, document: Mapping[str, JsonValue], tolerance: float, run: OnEngineThread
) -> float:
    cases = _parse(document)
    worst = 0.0
    for case in cases:
        if len(case.token_ids) > model.max_tokens or max(case.token_ids) >= model.vocab_size:
            raise CanaryMismatch("the manifest's canary does not fit the model's length or vocabulary")
        score = await _score_one(model, PromptGroup((), (case.token_ids,)), run)
        worst = max(worst, abs(score - case.score)) if score == score else float("inf")
    scores = [case.score for case in cases]
    allowed = max(_SMALLEST_TOLERANCE, tolerance * (max(scores) - min(scores)))
    if worst > allowed:
        raise CanaryMismatch(f"canary scores differ by {worst:.3f} from the manifest's; allowed is {allowed:.3f}")
    return worst


def _parse(document: Mapping[str, JsonValue]) -> Sequence[RewardCase]:
    try:
        return RewardCanary.model_validate(document).cases
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CanaryMismatch(f"the manifest's canary is malformed: {where}: {first['msg']}") from error


async def _invariant(model: RewardModel, run: OnEngineThread) -> bool:
    """Fixed random ids: alone, together, in reverse with other groups around them, and piece by piece."""
    draw = random.Random(20).randrange
    room = max(2, model.max_tokens // 2)

    def ids(length: int) -> TokenIds:
        return tuple(draw(model.vocab_size) for _ in range(min(length, room)))

    prompt, other = ids(90), ids(21)
    candidates = tuple(ids(length) for length in _LENGTHS)
    alone = [await _score_one(model, PromptGroup(prompt, (candidate,)), run) for candidate in candidates]
    together = await run(lambda: model.score([PromptGroup(prompt, candidates)]))
    mixed = [PromptGroup(other, candidates[:2]), PromptGroup(prompt, candidates[::-1]), PromptGroup((), (other,))]
    again = await run(lambda: model.score(mixed))
    in_pieces = await _in_pieces(model, prompt, candidates, run)
    return alone == together[0] == again[1][::-1] == in_pieces


async def _in_pieces(
    model: RewardModel, prompt: TokenIds, candidates: Sequence[TokenIds], run: OnEngineThread
) -> list[float]:
    """The scores of candidates that a live session got in three pieces, a pass after each."""
    session = model.open(prompt)
    found: dict[int | None, float] = {}
    try:
        for third in range(3):
            for index, own in enumerate(candidates):
                piece = own[third * len(own) // 3 : (third + 1) * len(own) // 3]
                if piece:
                    session.extend(index, piece)
                if third == 2:
                    session.finish(index)
            found |= await run(lambda: _step(model, session))
    finally:
        session.close()
    return [found[index] for index in range(len(candidates))]


def _step(model: RewardModel, session: LiveSession) -> dict[int | None, float]:
    due = session.due()
    values = model.forward([part.cell for part in due])
    return {part.candidate: value for part, value in zip(due, values, strict=True) if value is not None}


async def _score_one(model: RewardModel, group: PromptGroup, run: OnEngineThread) -> float:
    return (await run(lambda: model.score([group])))[0][0]
