"""One version in this service: its state, why, and what serves it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acemath_core.wire import Slot
from acemath_prompts import PromptEncoder
from acemath_registry.following import SERVING, FollowedVersion
from acemath_reward.activation import Head
from acemath_reward.encoding import Vocabulary
from acemath_reward.ports import ModelLoader, ModelServer
from acemath_reward.rendered import RenderedText
from acemath_reward.selfcheck import CheckResult
from acemath_reward.tickets import Engine


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded version, ready to take calls."""

    engine: Engine
    vocabulary: Vocabulary
    check: CheckResult


@dataclass
class VersionSlot(FollowedVersion):
    """What the service knows of one version.

    Attributes:
        copy: the verified private copy.
        server: the process that computes it, from staging on, if it has one of its own.
        served: what takes calls, from ready on.
        proved: it has been ready once, so that a failed start is not its own fault.
        calls: calls that use it now.
        last_call: monotonic time at which the last call ended.
    """

    copy: Path | None = None
    server: ModelServer | None = None
    served: Served | None = None
    proved: bool = False
    calls: int = 0
    last_call: float = field(default_factory=time.monotonic)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count a call for the length of the block."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            self.last_call = time.monotonic()

    def quiet_for(self, seconds: float) -> bool:
        """Whether no call has used it for so long."""
        return self.calls == 0 and time.monotonic() - self.last_call >= seconds

    def broken(self) -> str | None:
        """Why it gives no scores although its state says so, None while it does."""
        failure = self.server.failure() if self.server is not None and self.state in SERVING else None
        return None if failure is None else str(failure)

    def wire(self, stuck: str | None = None) -> Slot:
        """As `GET /v1/slots` shows it; it has no address of its own, the service's serves every version.

        Args:
            stuck: why no version here is being scored with, None while the engine works.
        """
        reason = self.broken() or (stuck if stuck is not None and self.state in SERVING else self.reason)
        return Slot(
            version=str(self.ref),
            state=self.state,
            since=self.since,
            reason=reason,
            gated=self.gated,
            stuck=stuck is not None and self.state in SERVING,
        )

    def details(self) -> dict[str, object]:
        """As `/readyz?verbose` shows it: what it runs on, and what its checks found."""
        details: dict[str, object] = {"state": self.state.value, "reason": self.reason, "calls": self.calls}
        if self.served is not None:
            details |= dict(self.served.engine.model.facts())
            details["batch_invariant"] = self.served.check.batch_invariant
            details["canary_difference"] = self.served.check.canary_difference
        return details


def load(directory: Path, version: str, load_model: ModelLoader, batch_tokens: int) -> tuple[Engine, Vocabulary]:
    """Model and tokenizer of a verified copy; blocks.

    Raises:
        UnsupportedCheckpoint: the engine does not serve it.
        TemplateError: its tokenizer or chat template cannot be used.
        OSError: a file cannot be read.
    """
    encoder = PromptEncoder.from_directory(directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    end_ids = _end_ids(config)
    rendered = RenderedText.from_directory(directory, encoder, end_ids)
    head = Head.from_config(config)
    model = load_model(directory)
    vocabulary = Vocabulary(encoder, end_ids, model.vocab_size, model.max_tokens, rendered, head)
    return Engine(version, model, batch_tokens), vocabulary


def _end_ids(config: Mapping[str, Any]) -> frozenset[int]:
    named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return frozenset(value for value in ids if isinstance(value, int))
