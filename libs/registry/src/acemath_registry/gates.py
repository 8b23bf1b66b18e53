"""What a channel asks of a release before it points at it: declared in the registry, checked under the channel's lock.

A gate reads only what the registry holds (manifests, status records, comparisons), so that whoever promotes, from
wherever, is held up by the same things. What a gate needs and cannot find or read holds the promotion up as well. The
first release of a channel has nothing to be compared with; going back is not gated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acemath_core.comparison import PairedDifference
from acemath_core.errors import Conflict, ErrorCode
from acemath_registry.canary_cases import canary_fault
from acemath_registry.documents import decode
from acemath_registry.errors import NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.evaluations import Attached, read_evaluation
from acemath_registry.files import OWN_NAMES
from acemath_registry.layout import Layout
from acemath_registry.manifest import Manifest, ModelKind
from acemath_registry.releases import Release
from acemath_registry.status import read_statuses
from acemath_registry.verify import read_manifest
from acemath_registry.words import Word, words


class CanaryGate(StrEnum):
    """What is asked of the canaries of a release's two versions."""

    DECLARED = "declared"  # both have one, which services then reproduce before they serve, and none was rejected
    REPRODUCED = "reproduced"  # a replica of each service has reproduced it already, following another channel


class EvaluationGate(BaseModel):
    """Not worse than the current release by more than a margin, by the paired interval.

    Attributes:
        set: name of the set of problems.
        metric: as reports name it, e.g. `rm@8`.
        margin: fraction of problems; the interval's lower end may not lie below minus the margin.
        min_problems: fewer decide nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    set: str = Field(min_length=1, max_length=200)
    metric: str = Field(min_length=1, max_length=50)
    margin: float = Field(ge=0.0, lt=1.0)
    min_problems: int = Field(default=100, ge=1)


class Gates(BaseModel):
    """What one channel asks; `canary` None and no evaluations is nothing."""

    # What a writer of tomorrow adds is a gate that this reader does not know: refused, never left out.
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    canary: CanaryGate | None = None
    evaluations: tuple[EvaluationGate, ...] = Field(default=(), max_length=32)

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len({(one.set, one.metric) for one in self.evaluations}) < len(self.evaluations):
            raise ValueError("a metric of a set is asked for twice; ask once")
        return self


class GateReason(StrEnum):
    """Why a gate refuses."""

    CANARY_MISSING = "canary_missing"
    CANARY_NOT_REPRODUCED = "canary_not_reproduced"
    VERSION_REJECTED = "version_rejected"
    EVALUATION_MISSING = "evaluation_missing"
    EVALUATION_UNREADABLE = "evaluation_unreadable"
    EVALUATION_INCOMPLETE = "evaluation_incomplete"
    EVALUATION_TOO_SMALL = "evaluation_too_small"
    EVALUATION_WORSE = "evaluation_worse"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One gate's no, with its figures and what to do."""

    reason: GateReason
    detail: str

    def __str__(self) -> str:
        return f"{self.detail} [{self.reason.value}]"

    def document(self) -> dict[str, str]:
        """As JSON."""
        return {"reason": self.reason.value, "detail": self.detail}


class GateRefused(Conflict):
    """A channel's gates refuse a release; nothing was changed.

    Attributes:
        refusals: of every gate that refuses.
    """

    default_code = ErrorCode.GATE_REFUSED

    def __init__(self, channel: str, release: str, refusals: tuple[Refusal, ...], *, share: bool = False) -> None:
        said = "; ".join(map(str, refusals))
        super().__init__(
            f"the gates of channel {channel!r} refuse {release}: {said}. Nothing was changed; in an emergency: "
            f"acemath registry {'canary' if share else 'promote'} --override-gates --reason TEXT",
            param="release",
            should_retry=False,
        )
        self.refusals = refusals


def read_gates(layout: Layout, channel: str) -> Gates:
    """What a channel asks; nothing when nobody declared anything.

    Raises:
        InvalidRequest: `channel` can not be a channel's name.
        VerificationError: GATES_MALFORMED.
        StorageError: they can not be read.
    """
    path = layout.gates(channel)
    with storage_errors(f"reading the gates of channel {channel}"):
        try:
            data = layout.store.read(path)
        except FileNotFoundError:
            return Gates()
    document = decode(data, file=path.name, reason=RejectReason.GATES_MALFORMED)
    try:
        return Gates.model_validate(document)
    except ValidationError as error:
        raise VerificationError(
            RejectReason.GATES_MALFORMED, "is not gates of this schema; declare them again, or upgrade", file=path.name
        ) from error


def refusals(
    layout: Layout,
    gates: Gates,
    baseline: str | None,
    release: Release,
    *,
    again_on: str | None = None,
    share_on: str | None = None,
) -> tuple[Refusal, ...]:
    """Why these gates refuse to let a channel go to `release`; empty when they do not.

    Args:
        layout: of the registry.
        gates: what is asked.
        baseline: id of the release that it is compared with; None before a channel's first release.
        release: that is to come.
        again_on: a channel of which the replicas are to try once more what they rejected, so that it refuses nothing.
        share_on: the channel, where the release is to get only a share there, for what is said to do.

    Raises:
        NotFound, VerificationError, StorageError: a version, or a status record, can not be read.
    """
    found = list(_canaries(layout, gates.canary, release, again_on, share_on)) if gates.canary is not None else []
    if baseline is not None and baseline != release.id and gates.evaluations:
        found += _evaluations(layout, gates.evaluations, baseline, release.id)
    return tuple(found)


def _canaries(
    layout: Layout, asked: CanaryGate, release: Release, again_on: str | None, share_on: str | None
) -> Iterator[Refusal]:
    for kind in ModelKind:
        member = release.member(kind)
        with layout.store.opened(layout.version(member.ref), OWN_NAMES) as directory:
            manifest = read_manifest(member.ref, directory, manifest_sha256=member.manifest_sha256)
        said = list(words(read_statuses(layout, kind.value), str(member.ref)))
        for word in said:
            if word.rejects(again_on):
                yield _rejected(kind, str(member.ref), word, share_on)
        missing = _missing_canary(manifest)
        if missing is not None:
            yield Refusal(GateReason.CANARY_MISSING, missing)
        elif asked is CanaryGate.REPRODUCED and not any(word.reproduced for word in said):
            yield Refusal(
                GateReason.CANARY_NOT_REPRODUCED,
                f"no {kind.value} replica has loaded {member.ref} and reproduced its canary; promote the release on a "
                "channel that a spare replica follows, and wait",
            )


def _missing_canary(manifest: Manifest) -> str | None:
    """The same content and step keep their manifest, and with it the canary, so that only another step helps."""
    then = "publish it again with another --step and a canary (acemath train canary computes one of most models)"
    if not manifest.canary:
        return f"{manifest.ref} was published without a canary; {then}"
    fault = canary_fault(manifest.kind, manifest.canary, manifest.compatibility.vocab_size)
    if fault is None:  # older publishers took anything for one
        return None
    return f"{manifest.ref} has a canary that nothing can be compared with ({fault}); {then}"


def _rejected(kind: ModelKind, version: str, word: Word, share_on: str | None) -> Refusal:
    """Who wants to give it a share is not told to give it everything, but where the replica follows another channel."""
    then = "promote it with --again" + ("" if word.channel is None else f" on channel {word.channel}")
    if share_on is not None and word.channel in (share_on, None):
        then = "begin its share with --again"
    said = f"{kind.value}/{word.instance} rejected {version} ({word.reason}); publish a good version, or, where "
    return Refusal(GateReason.VERSION_REJECTED, f"{said}that reason is gone, {then}")


def _evaluations(layout: Layout, asked: tuple[EvaluationGate, ...], baseline: str, candidate: str) -> Iterator[Refusal]:
    try:
        attached = read_evaluation(layout, baseline=baseline, candidate=candidate)
    except NotFound as error:
        yield Refusal(GateReason.EVALUATION_MISSING, error.message)
        return
    except VerificationError as error:
        yield Refusal(GateReason.EVALUATION_UNREADABLE, error.message)
        return
    if not attached.comparison.complete:
        said = f"the comparison of {candidate} with {baseline} has problems without an outcome; finish its runs"
        yield Refusal(GateReason.EVALUATION_INCOMPLETE, said)
    for gate in asked:
        refusal = _evaluation(gate, attached)
        if refusal is not None:
            yield refusal


def _evaluation(gate: EvaluationGate, attached: Attached) -> Refusal | None:
    name, measured = f"{gate.metric} on {gate.set}", attached.comparison.find(gate.set, gate.metric)
    if measured is None:
        has = ", ".join(f"{one.metric} on {one.set}" for one in attached.comparison.results)
        said = f"the comparison says nothing of {name}, only of {has}; evaluate both releases there"
        return Refusal(GateReason.EVALUATION_MISSING, said)
    if measured.problems < gate.min_problems:
        said = f"{name} has {measured.problems} problems, {gate.min_problems} are asked for; evaluate on more"
        return Refusal(GateReason.EVALUATION_TOO_SMALL, said)
    if measured.low < -gate.margin:
        return Refusal(GateReason.EVALUATION_WORSE, _worse(gate, measured, attached.comparison.level))
    return None


def _worse(gate: EvaluationGate, measured: PairedDifference, level: float) -> str:
    """The figures in points, and what they ask for: a better model, or more problems."""
    do = "evaluate on more problems" if measured.high >= 0.0 else "train a better version"
    return (
        f"{gate.metric} on {gate.set} is {100 * measured.candidate:.1f} against {100 * measured.baseline:.1f}, a "
        f"difference of {100 * measured.difference:+.1f} points with a {level:.0%} interval from "
        f"{100 * measured.low:+.1f} to {100 * measured.high:+.1f}, and {-100 * gate.margin:.1f} is allowed "
        f"({measured.problems} problems); {do}"
    )
