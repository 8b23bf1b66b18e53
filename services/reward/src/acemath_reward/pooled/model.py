"""A checkpoint in a vLLM pooling server, behind the engine's port.

What is lost beside our own engine: the prompt is shared in whole blocks of vLLM's prefix cache only, nothing is
computed before a candidate ends, and a score may change with its batch: vLLM promises no bits, so nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from acemath_core.processes.tree import ProcessTree
from acemath_core.processes.vllm import NoFreePort, environment, free_port
from acemath_reward.engine.config import EngineConfig, read_config
from acemath_reward.pooled.client import PoolingClient, Question
from acemath_reward.pooled.command import LOOPBACK, command_line, dtype_of
from acemath_reward.pooled.server import TERM_SECONDS, Child, PoolingServer, ServerTimes
from acemath_reward.pooled.whole import LiveBytes, WholeCell, WholeSession, whole_cells
from acemath_reward.ports import (
    DEFAULT_LIVE_LIMITS,
    Cell,
    LiveLimits,
    PromptGroup,
    ServerEnd,
    ServerFailure,
    TokenIds,
    UnsupportedCheckpoint,
)
from acemath_reward.settings import RewardSettings


class PooledModel:
    """A one-label classifier that a server computes (`ports.RewardModel`).

    Args:
        config: the checkpoint's.
        server: computes it; started by whoever brings the version up.
        facts: what an operator should see.
        live: bytes of ids that live sessions may hold.
    """

    def __init__(
        self, config: EngineConfig, server: PoolingServer, facts: Mapping[str, object], live: LiveLimits
    ) -> None:
        self._config, self._server, self._facts = config, server, dict(facts)
        self._live = LiveBytes(live)

    @property
    def max_tokens(self) -> int:
        """See the port, as for all that follows."""
        return self._config.max_tokens

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._config.vocab_size

    @property
    def cell_tokens(self) -> int:
        """All of a live candidate is left to compute after its last token."""
        return self._config.max_tokens

    @property
    def live_bytes(self) -> int:
        """Bytes that all live sessions hold now."""
        return self._live.held

    @property
    def server(self) -> PoolingServer:
        """The process that computes it."""
        return self._server

    def facts(self) -> Mapping[str, object]:
        """What an operator should see."""
        return self._facts

    def plan(self, group: PromptGroup) -> list[Cell]:
        """A cell for each candidate."""
        return list(whole_cells(group))

    def open(self, prompt: TokenIds) -> WholeSession:
        """A session that hands a candidate over when it ends."""
        return WholeSession(prompt, self._config.max_tokens, self._live)

    def forward(self, cells: Sequence[Cell]) -> list[float | None]:
        """Score the cells that somebody wants, each sequence once."""
        given = [_whole(cell) for cell in cells]
        if len({id(cell) for cell in given}) < len(given):
            raise ValueError("a cell is given twice")
        wanted = [cell.wanted() for cell in given]
        scores = self._scores([cell for cell, want in zip(given, wanted, strict=True) if want])
        for cell in given:
            cell.done()
        return [scores[cell.ids] if want else None for cell, want in zip(given, wanted, strict=True)]

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        """One float32 number for each candidate, in the groups' order."""
        planned = [whole_cells(group) for group in groups]
        scores = self._scores([cell for cells in planned for cell in cells])
        return [[scores[cell.ids] for cell in cells] for cells in planned]

    def _scores(self, cells: Sequence[WholeCell]) -> dict[TokenIds, float]:
        sequences = list(dict.fromkeys(cell.ids for cell in cells))
        return dict(zip(sequences, self._server.score(sequences) if sequences else [], strict=True))


class PooledLoader:
    """Makes models whose servers are processes below this one (`ports.ModelLoader`).

    Args:
        settings: the service's.
        inherited: the environment that vLLM may see.
        key: the internal key.
        live: bytes of ids that the live sessions of one model may hold.
    """

    def __init__(
        self,
        settings: RewardSettings,
        inherited: Mapping[str, str],
        key: SecretStr | None,
        live: LiveLimits = DEFAULT_LIVE_LIMITS,
    ) -> None:
        self._settings, self._inherited, self._key, self._live = settings, dict(inherited), key, live
        self._ports: set[int] = set()  # of servers that are not gone

    def __call__(self, directory: Path) -> PooledModel:
        """The checkpoint in `directory`; its server is not started yet.

        Raises:
            UnsupportedCheckpoint: the architecture is not served this way.
        """
        settings, config = self._settings, read_config(directory)
        _check(config, settings.tensor_parallel_size)
        name = f"{directory.parent.name}@{directory.name}"
        times = ServerTimes(settings.start_timeout_seconds, settings.stuck_seconds, settings.probe_seconds)
        server = PoolingServer(name, partial(self._child, directory, name, config), times)
        return PooledModel(config, server, self._facts(config), self._live)

    def _child(self, directory: Path, name: str, config: EngineConfig) -> Child:
        port, settings = self._port(), self._settings
        tree = ProcessTree(
            command_line(settings, model=directory, name=name, port=port, config=config),
            environment(settings, self._inherited, self._key),
            label=name,
            term_seconds=TERM_SECONDS,
        )
        question = Question.SEQUENCE if config.head == "linear" else Question.TOKENS
        client = PoolingClient(LOOPBACK, port, name, self._key, question)
        return Child(tree, client, partial(self._ports.discard, port))

    def _port(self) -> int:
        first, last = self._settings.first_vllm_port, self._settings.last_vllm_port
        try:
            port = free_port(LOOPBACK, range(first, last + 1), self._ports)
        except NoFreePort as error:
            raise ServerFailure(ServerEnd.NO_PORT, str(error)) from error
        self._ports.add(port)
        return port

    def _facts(self, config: EngineConfig) -> dict[str, object]:
        return {
            "engine": "vllm",
            "architecture": config.architecture,
            "dtype": dtype_of(self._settings),
            "device": self._settings.device,
            "tensor_parallel_size": self._settings.tensor_parallel_size,
            "batch_invariance": "not promised by this engine",
        }


def _check(config: EngineConfig, ranks: int) -> None:
    if config.heads % ranks:
        raise UnsupportedCheckpoint(
            f"{config.heads} query heads cannot be shared by ACEMATH_REWARD__TENSOR_PARALLEL_SIZE={ranks}; "
            "choose a number that divides them"
        )


def _whole(cell: Cell) -> WholeCell:
    if not isinstance(cell, WholeCell):
        raise ValueError(f"{type(cell).__name__} is not a cell of this engine")
    return cell
