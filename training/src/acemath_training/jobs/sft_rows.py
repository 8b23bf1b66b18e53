"""The rows of a supervised job, every one of them looked at before the first step.

A row that cannot be trained on stops a run where it stands, and every resumed run at the same row. So all are encoded
once, each rank its share: a conversation that is too long is left out and counted, a malformed one ends the job.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from acemath_training.data.conversations import Conversations
from acemath_training.data.mixture import Mixture
from acemath_training.data.rows import Encoder, Row, SftBatches, sft_row
from acemath_training.errors import ConfigError, DataError
from acemath_training.jobs.config import SftConfig
from acemath_training.jobs.ranks import rank_and_world, too_long

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SftRows:
    """The batches of all ranks, and how many conversations of the file were longer than allowed."""

    batches: SftBatches
    left_out: int


def make(config: SftConfig, work_dir: Path, encoder: Encoder, end_of_turn: int, world: int) -> SftRows:
    """The stream of batches for all ranks: rank r takes items r, r + world, … in Trainer's order.

    Raises:
        ConfigError: a generated mixture has no end, so it needs max_steps.
        DataError: the file is malformed or nothing of it is left, or a generated row is too long.
    """
    if config.data.file is not None:
        return _of_file(config, work_dir / config.data.file, encoder, end_of_turn, world)
    if config.training.max_steps is None:
        raise ConfigError("a generated mixture has no epochs; give training.max_steps")
    mixture = Mixture(list(config.data.mixture), config.data.seed, work_dir)
    batches = _batches(config, lambda index: sft_row(encoder, mixture[index], end_of_turn), None, world)
    used = range(config.data.cursor, batches.cursor_after(len(batches)))
    long = too_long(lambda index: len(sft_row(encoder, mixture[index], end_of_turn).ids), used, config.data.max_length)
    if long:
        raise DataError(
            f"{len(long)} of {len(used)} generated rows have more tokens than data.max_length {config.data.max_length}"
            f" (the first is row {long[0]}, {mixture[long[0]].key}); raise it, or lower the source's max_characters"
        )
    return SftRows(batches, 0)


def _of_file(config: SftConfig, path: Path, encoder: Encoder, end_of_turn: int, world: int) -> SftRows:
    conversations = Conversations(path, encoder, end_of_turn, config.data.seed)
    every, limit = len(conversations), config.data.max_length
    long = too_long(lambda number: len(conversations.conversation(number).ids), range(every), limit)
    conversations.leave_out(frozenset(long))
    if long and rank_and_world()[0] == 0:
        _log.warning("%d of %d conversations have more than %d tokens and are left out", len(long), every, limit)
    return SftRows(_batches(config, conversations.row, len(conversations), world), len(long))


def _batches(config: SftConfig, row: Callable[[int], Row], epoch: int | None, world: int) -> SftBatches:
    training = config.training
    steps = training.max_steps
    if steps is None:
        rows = (training.epochs or 1.0) * (epoch or 0)
        steps = max(1, round(rows / (training.rows_per_device * training.gradient_accumulation * world)))
    return SftBatches(
        row,
        rows_per_batch=training.rows_per_device,
        batches=steps * training.gradient_accumulation * world,
        cursor=config.data.cursor,
        max_length=config.data.max_length,
    )
