"""The seam between the service and its engine: token ids in, one float32 number for each candidate out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Candidates that share a prompt, which is computed once for all of them.

    Attributes:
        prompt: ids that every candidate of the group begins with; may be empty.
        candidates: what follows the prompt, at least one id each; scored at the last one.
    """

    prompt: TokenIds
    candidates: tuple[TokenIds, ...]

    @property
    def tokens(self) -> int:
        """Rows that the engine computes for this group."""
        return len(self.prompt) + sum(map(len, self.candidates))


class RewardModel(Protocol):
    """A loaded checkpoint. One thread at a time calls `score`.

    The contract that makes scores comparable: a candidate's number has the same bits whichever groups, mates and
    order it is scored with.
    """

    @property
    def max_tokens(self) -> int:
        """Prompt and candidate together may have so many tokens."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        ...

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        """One float32 number for each candidate, in the groups' order; blocks until they are computed."""
        ...

    def facts(self) -> Mapping[str, object]:
        """What an operator should see: architecture, dtype, device, threads."""
        ...


class ModelLoader(Protocol):
    """Loads the checkpoint in a directory; blocks. Raises `UnsupportedCheckpoint` when it cannot be served."""

    def __call__(self, directory: Path) -> RewardModel:
        """The loaded model."""
        ...


class UnsupportedCheckpoint(Exception):
    """The checkpoint asks for something that the engine does not implement; the message says what."""
