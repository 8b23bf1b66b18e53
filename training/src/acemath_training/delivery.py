"""The end of a training job: its result becomes a version of the registry and, if wished, the one that is served.

    adapter or model/ ──► whole checkpoint ──► canary ──► publish ──► release with the channel's other model ──► promote

What can be known to be wrong is found before the training begins (`check`). A version's name is its content, so the
same command again publishes nothing new. While a job trained for hours, others may have promoted the other model, which
it then stands beside; a channel on which somebody changed the job's own model, rolled back or began a share meanwhile
is left alone, and so is one on which the result was current before and is not any more, or whose other model replicas
rejected.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from acemath_core.errors import ServiceError
from acemath_registry import Channel, Manifest, ModelKind, ModelRef, NotFound, PublishMetadata, Registry, SigningKey
from acemath_registry.audit import acting_user
from acemath_registry.lengths import shorter_versions
from acemath_registry.refs import check_by, check_name
from acemath_training.architecture import language_model
from acemath_training.errors import PublishError
from acemath_training.jobs import run_record
from acemath_training.left_alone import (
    LeftAlone,
    Standing,
    named,
    other_kind,
    refuse_beside_rejected,
    refuse_to_undo,
)
from acemath_training.progress import Teller

KINDS = {"sft": ModelKind.POLICY, "reward_model": ModelKind.REWARD}
_CHECKPOINT = "model"  # a full-weight result's folder (`jobs.full_weights`), named here too: that module needs torch


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a job's result goes.

    Attributes:
        name: of the model in the registry.
        root: the registry: a directory, or `s3://bucket/prefix`.
        channel: to point at the result; None publishes only.
        beside: name@version of the other model of the release; None takes the one that the channel has.
        licence: SPDX expression of the weights' licence; None takes the base's, where the base is a version.
        by: who, for the audit log.
        signer: signs the version.
    """

    name: str
    root: str
    channel: str | None = None
    beside: str | None = None
    licence: str | None = None
    by: str = field(default_factory=acting_user)
    signer: SigningKey | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of it.

    Attributes:
        model: the version.
        release: id of the release that was made; None when nothing was to be promoted.
        generation: of the channel since then.
    """

    model: ModelRef
    release: str | None = None
    generation: int | None = None


def check(wish: Delivery, job: str, base: Path, *, lora: bool = False) -> Standing:
    """Find out before hours of training what would fail after them; takes what `deliver` takes.

    Args:
        wish: where the result goes.
        job: `sft` or `reward_model`.
        base: the checkpoint to start from.
        lora: whether an adapter is trained.

    Raises:
        PublishError: no licence, a channel that is not there and nothing to stand beside the result, or a partner that
            is no version of the other kind.
        ServiceError: the registry refuses.
    """
    check_name(wish.name, what="--publish")
    check_by(wish.by)
    _licence(wish, _parent(base))
    if lora and job == "reward_model":
        language_model(_plain(base))
    if wish.channel is None:
        if wish.beside is not None:
            raise PublishError("--with names the other model of a release; give --promote too, or leave it out")
        return Standing()
    registry, ours = Registry(wish.root), KINDS[job]
    channel = _channel(registry, wish.channel)
    other = _partner(registry, wish, ours, channel)
    kind = registry.manifest(other).kind
    if kind is ours:
        raise PublishError(f"{other} is a {kind} model, as the result will be; --with names the other kind")
    return Standing() if channel is None else Standing(channel.generation, named(registry, channel, ours))


def deliver(job: str, base: Path, output: Path, wish: Delivery, began: Standing) -> Delivered:
    """Publish what a finished job left in `output`, and promote it where that is wished.

    Args:
        job: `sft` or `reward_model`.
        base: the checkpoint that the job started from.
        output: the job's folder.
        wish: where it goes.
        began: what `check` gave.

    Raises:
        PublishError: the job is not finished, its result cannot be made a checkpoint, or the channel is left alone.
        ServiceError: the registry refuses (a gate, another promotion, a full disk, …).
    """
    tell, registry = Teller("publish", sys.stderr), Registry(wish.root)
    record = _record(output)
    with _scratch(output) as scratch:
        with tell.step("making a whole checkpoint"):
            checkpoint = _checkpoint(job, base, output, scratch / "merged")
        with tell.step("computing the canary"):
            metadata = _metadata(job, base, record, wish, checkpoint)
        with tell.step(f"publishing {wish.name}"):
            ref = registry.publish(
                checkpoint, name=wish.name, kind=KINDS[job], metadata=metadata, by=wish.by, signer=wish.signer
            )
    tell.say(f"published {ref}")
    return Delivered(ref) if wish.channel is None else _promoted(registry, job, wish, ref, began, tell)


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder beside the result, where there is room for one of its size."""
    try:
        with tempfile.TemporaryDirectory(prefix=".delivery-", dir=output) as scratch:
            yield Path(scratch)
    except OSError as error:
        what = f"{error.filename or output}: {error.strerror or error}"
        raise PublishError(f"the result cannot be made a checkpoint: {what}; the same command tries again") from error


def _promoted(registry: Registry, job: str, wish: Delivery, ref: ModelRef, began: Standing, tell: Teller) -> Delivered:
    assert wish.channel is not None
    channel = _channel(registry, wish.channel)
    other = _partner(registry, wish, KINDS[job], channel)
    policy, reward = (ref, other) if KINDS[job] is ModelKind.POLICY else (other, ref)
    release = registry.create_release(policy, reward)
    if channel is not None and channel.release == release.id:
        tell.say(f"channel {wish.channel} already points at {release.id}")
        return Delivered(ref, release.id, channel.generation)
    try:
        refuse_to_undo(registry, wish.channel, channel, KINDS[job], ref, began)
        refuse_beside_rejected(registry, wish.channel, channel, other_kind(KINDS[job]), other)
        generation = channel.generation if channel else 0
        moved = registry.promote(wish.channel, release.id, expected_generation=generation, by=wish.by)
    except (ServiceError, LeftAlone) as error:
        new = "" if channel else " --new"
        raise PublishError(
            f"{ref} is published and stays so, but channel {wish.channel} was not pointed at {release.id}: {error}; "
            f"acemath registry promote {wish.channel} --release {release.id}{new} does it when that is settled"
        ) from error
    tell.say(f"promoted {release.id} ({policy}, {reward}) on channel {wish.channel}, generation {moved.generation}")
    for said in () if moved.previous is None else shorter_versions(registry, moved.previous, release.id):
        tell.say(f"warning: {said}")
    return Delivered(ref, release.id, moved.generation)


def _channel(registry: Registry, name: str) -> Channel | None:
    try:
        return registry.channel(name)
    except NotFound:
        return None


def _partner(registry: Registry, wish: Delivery, kind: ModelKind, channel: Channel | None) -> ModelRef:
    if wish.beside is not None:
        return ModelRef.parse(wish.beside)
    if channel is None:
        raise PublishError(
            f"channel {wish.channel} does not exist in {wish.root}; --with NAME@VERSION names the model that the "
            "result is to be released with"
        )
    return named(registry, channel, other_kind(kind))


def _record(output: Path) -> run_record.RunRecord:
    file = output / run_record.FILE
    if not file.is_file():
        raise PublishError(f"{output} has no {run_record.FILE}, so the job did not end; run the same command again")
    return run_record.RunRecord.model_validate_json(file.read_text("utf-8"))


def _checkpoint(job: str, base: Path, output: Path, target: Path) -> Path:
    if (output / _CHECKPOINT / "config.json").is_file():
        return output / _CHECKPOINT
    from acemath_training.embedded import merge  # noqa: PLC0415 - torch takes seconds to import

    return (merge.policy if job == "sft" else merge.reward)(_plain(base), output, target)


def _plain(base: Path) -> Path:
    """The base's own folder, where the base is the output of a finished full-weight stage."""
    return base / _CHECKPOINT if (base / _CHECKPOINT / "config.json").is_file() else base


def _metadata(job: str, base: Path, record: run_record.RunRecord, wish: Delivery, checkpoint: Path) -> PublishMetadata:
    import torch  # noqa: PLC0415

    from acemath_training.embedded import canary  # noqa: PLC0415 - torch and transformers

    torch.set_num_threads(1)  # its values then do not depend on the number of cores
    values = canary.policy(checkpoint) if job == "sft" else canary.reward(checkpoint)
    parent = _parent(base)
    return PublishMetadata(
        step=record.steps,
        licence=_licence(wish, parent),
        parent=str(parent.ref) if parent else None,
        base_model=(parent.base_model or str(parent.ref)) if parent else None,
        training={
            "job": job,
            "config_sha256": record.config_sha256,
            "stage": record.config.get("stage"),
            "inputs": dict(record.inputs),
            "data_cursor": record.cursor,
        },
        metrics=dict(record.figures),
        canary=values,
        tools={name: version(name) for name in ("torch", "transformers", "deepspeed", "safetensors")},
    )


def _licence(wish: Delivery, parent: Manifest | None) -> str:
    if wish.licence is not None:
        return wish.licence
    if parent is None:
        raise PublishError("the base is no version of a registry, so its licence is not known; give --licence")
    return parent.licence


def _parent(base: Path) -> Manifest | None:
    """The manifest beside the base, where that is a version of a registry."""
    file = _plain(base) / "manifest.json"
    return Manifest.model_validate_json(file.read_bytes()) if file.is_file() else None
