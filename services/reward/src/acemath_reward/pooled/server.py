"""One vLLM pooling server below this service: started, watched, asked, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acemath_core.errors import ErrorCode, Unavailable
from acemath_core.processes.tree import ProcessTree
from acemath_core.processes.words import last_words
from acemath_reward.pooled.client import NoAnswer, PoolingClient, WrongAnswer
from acemath_reward.ports import ServerEnd, ServerFailure, TokenIds

_log = logging.getLogger(__name__)
TERM_SECONDS = 10.0
"""How long vLLM may take after TERM; nothing is under way then."""

_LOOK_SECONDS = 0.25  # between two looks while it starts
_TELL_SECONDS = 30.0  # between two lines of the log that say that it still starts
_FIRST = ((0,), (1, 0))  # any ids that every vocabulary has
_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """All in seconds.

    Attributes:
        start: from its start to its first score.
        answer: one batch; a server that takes longer is taken for one that hangs.
        probe: between two looks at its health, and for one of them.
    """

    start: float
    answer: float
    probe: float = 5.0


@dataclass(frozen=True, slots=True)
class Child:
    """A process and who asks it.

    Attributes:
        tree: not started yet.
        client: asks it.
        release: called when it is gone: its port is free.
    """

    tree: ProcessTree
    client: PoolingClient
    release: Callable[[], object]


class PoolingServer:
    """A server (`ports.ModelServer`); `score` is called on the engine's thread, the rest on the event loop.

    Args:
        name: name@version, for the log.
        make: the process, on a port of its own; raises `ServerFailure`.
        times: see there.
    """

    def __init__(self, name: str, make: Callable[[], Child], times: ServerTimes) -> None:
        self._name, self._make, self._times = name, make, times
        self._child: Child | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failure: ServerFailure | None = None

    async def start(self) -> None:
        """See the port, as for all that follows."""
        self._child = child = self._make()
        try:
            await child.tree.start()
        except OSError as error:
            raise ServerFailure(ServerEnd.NOT_STARTED, f"vLLM cannot be started: {error.strerror}") from error
        began = time.monotonic()
        await self._until_healthy(child, began)
        child.tree.remember(now=True)
        left = max(1.0, self._times.start - (time.monotonic() - began))
        await asyncio.to_thread(_first_scores, child.client, left)
        _log.info("%s: vLLM scores, %.0f s after its start", self._name, time.monotonic() - began)
        self._watching = asyncio.create_task(self._watch(child))

    async def close(self) -> None:
        """End it."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._child is not None:
            well = self._watching is not None and self.failure() is None
            await (self._child.tree.stop() if well else self._child.tree.kill())
            self._child.release()
        if self._failure is None:
            self._failure = ServerFailure(ServerEnd.CLOSED, "its server was stopped")

    def failure(self) -> ServerFailure | None:
        """Why it does not score any more."""
        child = self._child
        if self._failure is None and child is not None and child.tree.status is not None:
            return ServerFailure(ServerEnd.EXITED, _epitaph(child.tree))
        return self._failure

    def score(self, sequences: Sequence[TokenIds]) -> list[float]:
        """The raw float32 score of each sequence.

        Raises:
            Unavailable: (`reward_unavailable`) it is gone, or hangs; it is started again.
            WrongAnswer: see `PoolingClient.score`.
        """
        try:
            if self._child is None or self._failure is not None:
                raise NoAnswer(str(self._failure or "its server was not started"))
            return self._child.client.score(sequences, self._times.answer)
        except NoAnswer as error:
            if error.late:
                self._failure = ServerFailure(ServerEnd.STALLED, str(error))
            _log.error("%s: %s", self._name, error)
            raise Unavailable(
                "the server that computes this reward model is away and is being started again; try again later",
                code=ErrorCode.REWARD_UNAVAILABLE,
                retry_after=_RETRY_SECONDS,
            ) from error

    async def _until_healthy(self, child: Child, began: float) -> None:
        told = began
        while await asyncio.to_thread(child.client.healthy, self._times.probe) is not True:
            child.tree.remember()
            now = time.monotonic()
            if child.tree.status is not None:
                raise ServerFailure(ServerEnd.EXITED, _epitaph(child.tree))
            if now - began > self._times.start:
                message = f"vLLM did not answer within {self._times.start:.0f} s: {last_words(child.tree.tail)}"
                raise ServerFailure(ServerEnd.START_TIMEOUT, message)
            if now - told >= _TELL_SECONDS:
                told = now
                _log.info("%s: vLLM has been starting for %.0f s", self._name, now - began)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _watch(self, child: Child) -> None:
        """Look at the process and its health until something ends."""
        seen = time.monotonic()
        while self._failure is None:
            child.tree.remember()
            healthy = await asyncio.to_thread(child.client.healthy, self._times.probe)
            if healthy is True:
                seen = time.monotonic()
            elif healthy is False:
                self._failure = ServerFailure(ServerEnd.ENGINE_DEAD, "vLLM says that its engine is dead")
            elif time.monotonic() - seen > self._times.answer:
                self._failure = ServerFailure(ServerEnd.STALLED, f"no answer for {time.monotonic() - seen:.0f} s")
            await asyncio.sleep(self._times.probe)


def _first_scores(client: PoolingClient, timeout: float) -> None:
    """Whether it scores at all; healthy it also is with a model that has no score."""
    try:
        scores = client.score(_FIRST, timeout)
    except NoAnswer as error:
        raise ServerFailure(ServerEnd.START_TIMEOUT, str(error)) from error
    except WrongAnswer as error:
        raise ServerFailure(ServerEnd.WRONG_ANSWER, str(error)) from error
    if not all(map(math.isfinite, scores)):
        raise ServerFailure(ServerEnd.WRONG_ANSWER, "its first scores are not numbers")


def _epitaph(tree: ProcessTree) -> str:
    return f"vLLM ended with status {tree.status}: {last_words(tree.tail)}"
