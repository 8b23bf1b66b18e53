"""What keeps a finished job from moving its channel: what somebody did meanwhile, or a partner that was rejected."""

from dataclasses import dataclass

from acemath_core.errors import ServiceError
from acemath_registry import Channel, ModelKind, ModelRef, NotFound, Registry
from acemath_registry.audit import AuditEvent
from acemath_registry.words import Word, words

_PROMOTIONS = frozenset({AuditEvent.PROMOTE, AuditEvent.PROMOTE_AGAIN})


class LeftAlone(Exception):
    """Promoting would undo what somebody did, or bring what cannot be served; the message says what."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the channel had when the job began.

    Attributes:
        generation: of the channel; 0 when there was none.
        model: the version of the job's kind.
    """

    generation: int = 0
    model: ModelRef | None = None


def other_kind(kind: ModelKind) -> ModelKind:
    """What a release has beside a version of this kind."""
    return ModelKind.REWARD if kind is ModelKind.POLICY else ModelKind.POLICY


def named(registry: Registry, channel: Channel, kind: ModelKind) -> ModelRef:
    """The version of this kind that the channel names."""
    return registry.release(channel.release).member(kind).ref


def refuse_to_undo(
    registry: Registry, name: str, channel: Channel | None, kind: ModelKind, ref: ModelRef, began: Standing
) -> None:
    """Raises LeftAlone where somebody changed the job's kind since it `began`, or took `ref` away before."""
    if channel is None or (now := named(registry, channel, kind)) == ref:
        return
    if channel.generation != began.generation and now != began.model:
        raise LeftAlone(f"{channel.by} put {now} there while the job ran")
    changes = [entry for entry in registry.log() if entry.what == name and entry.generation is not None]
    for entry in changes:
        if (entry.generation or 0) > began.generation and entry.event not in _PROMOTIONS:
            raise LeftAlone(f"{entry.by} changed it while the job ran ({entry.event.value})")
    for release in dict.fromkeys(entry.after for entry in changes if entry.after is not None):
        if _member(registry, release, kind) == ref:
            raise LeftAlone(f"{ref} was there before, in {release}, and somebody took it away")


def refuse_beside_rejected(
    registry: Registry, name: str, channel: Channel | None, kind: ModelKind, partner: ModelRef
) -> None:
    """Raises LeftAlone where a replica of the channel rejected the partner, which is of this kind.

    Gateways use a release only when every replica has both halves ready. Where the other half of what the channel names
    was rejected, too, the partner may have been refused for that alone, and the job brings what mends it.
    """
    found = _rejections(registry, name, kind, partner)
    named_beside = None if channel is None else _member(registry, channel.release, other_kind(kind))
    if found and not (named_beside and _rejections(registry, name, other_kind(kind), named_beside)):
        before = None if channel is None or channel.previous is None else _member(registry, channel.previous, kind)
        example = "" if before in (None, partner) else f" (the release before has {before})"
        raise LeftAlone(
            f"{kind.value}/{found[0].instance} rejected {partner} ({found[0].reason}), so that no gateway would use "
            f"this release; the same command with --with NAME@VERSION puts the result beside another model{example}"
        )


def _rejections(registry: Registry, name: str, kind: ModelKind, ref: ModelRef) -> list[Word]:
    try:
        return [word for word in words(registry.statuses(kind.value, name), str(ref)) if word.rejects()]
    except ServiceError:  # what cannot be read rejects nothing
        return []


def _member(registry: Registry, release: str, kind: ModelKind) -> ModelRef | None:
    try:
        return registry.release(release).member(kind).ref
    except NotFound:  # collected since
        return None
