"""Is it the model that was trained? Teacher-forced log-probabilities against those in the manifest.

The engine is shown fixed token ids and asked how likely it finds each; nothing is sampled, so that batching and
seeds do not matter. What the manifest's `canary` holds says `acemath_registry.canary_cases`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from pydantic import JsonValue, ValidationError

from acemath_prompts import PromptEncoder, TemplateError, check_rendering
from acemath_registry.canary_cases import PolicyCanary


class CanaryMismatch(Exception):
    """Log-probabilities or prompts are not the trainer's; the message gives the differences."""


class Canary(PolicyCanary):
    """The cases of one version, and the dtype they were computed in."""

    @classmethod
    def of(cls, document: Mapping[str, JsonValue]) -> Self:
        """The canary in a manifest.

        Raises:
            CanaryMismatch: it has another form, so that nothing can be compared.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CanaryMismatch(f"the manifest's canary is malformed: {where}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest allowed |difference| of log-probabilities over all cases, in nats."""

    mean: float
    largest: float


class TeacherForced(Protocol):
    """Something that gives a prompt's log-probabilities."""

    async def prompt_logprobs(self, token_ids: tuple[int, ...], timeout: float) -> list[float]:
        """log p(token_ids[i + 1] | token_ids[: i + 1]) for every i."""
        ...


def check_prompts(canary: Canary, model: Path) -> None:
    """Whether a checkpoint's tokenizer and chat template are those of the trainer; blocks for a moment.

    The gateway makes this version's prompts by them. Where no case has its conversation, they are not looked at.

    Raises:
        CanaryMismatch: they make other ids of a conversation of the canary, or cannot be used.
    """
    told = [(case.messages, case.token_ids) for case in canary.cases if case.messages]
    try:
        if told:
            check_rendering(PromptEncoder.from_directory(model), told)
    except (TemplateError, OSError, ValueError) as error:
        raise CanaryMismatch(str(error)) from error


async def check(canary: Canary, engine: TeacherForced, tolerance: Tolerance, timeout: float) -> tuple[float, float]:
    """Compare; returns (mean, largest) |difference| in nats.

    Raises:
        CanaryMismatch: over the tolerance.
    """
    differences: list[float] = []
    for case in canary.cases:
        found = await engine.prompt_logprobs(case.token_ids, timeout)
        differences += [abs(a - b) for a, b in zip(found, case.logprobs, strict=True)]
    mean, largest = math.fsum(differences) / len(differences), max(differences)
    if mean > tolerance.mean or largest > tolerance.largest:
        raise CanaryMismatch(
            f"log-probabilities differ by {mean:.3f} on average and {largest:.3f} at most "
            f"(allowed {tolerance.mean:g} and {tolerance.largest:g})"
        )
    return mean, largest
