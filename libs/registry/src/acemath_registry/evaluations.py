"""Comparisons of two releases (`acemath eval compare`), bound to both by digest: what an evaluation gate reads.

Of each pair of releases the one that was attached last counts; each attaching is a line of the audit log, with the
digest of what was attached, so that asking until the answer pleases can be seen.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from acemath_core.comparison import Comparison, Sampled
from acemath_registry.audit import AuditEvent, require_record
from acemath_registry.documents import decode, encode, sha256_hex
from acemath_registry.errors import InvalidRequest, NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.layout import Layout
from acemath_registry.refs import check_by
from acemath_registry.releases import Release, read_release


class Attached(BaseModel):
    """A comparison in the registry.

    Attributes:
        comparison: what was measured.
        comparison_sha256: of the comparison's canonical bytes.
        baseline_sha256: of the baseline release's file.
        candidate_sha256: of the candidate release's file.
        by: who attached it.
        at: when, in UTC; for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    comparison: Comparison
    comparison_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    baseline_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    candidate_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    by: str
    at: AwareDatetime


def digest_of(comparison: Comparison) -> str:
    """The sha256 of a comparison's canonical bytes."""
    return sha256_hex(encode(comparison.model_dump(mode="json")))


def attach_evaluation(layout: Layout, comparison: Comparison, *, by: str) -> Attached:
    """Attach a comparison to its two releases, in place of an earlier one of the same two.

    Raises:
        InvalidRequest: a side names other versions than its release, or `by` nobody.
        NotFound, VerificationError: a release is not there, or was edited.
        StorageError: it, or its line in the audit log, can not be written.
    """
    check_by(by)
    attached = Attached(
        comparison=comparison,
        comparison_sha256=digest_of(comparison),
        baseline_sha256=_bound(layout, comparison.baseline).sha256,
        candidate_sha256=_bound(layout, comparison.candidate).sha256,
        by=by,
        at=datetime.now(UTC),
    )
    baseline, candidate = comparison.baseline.release, comparison.candidate.release
    path = layout.evaluation(baseline=baseline, candidate=candidate)
    with storage_errors(f"attaching an evaluation to {candidate}"):
        why = f"comparison with {baseline}, sha256 {attached.comparison_sha256}"
        require_record(layout, AuditEvent.ATTACH_EVALUATION, by=by, what=candidate, why=why)
        layout.store.replace(path, encode(attached.model_dump(mode="json")))
    return attached


def read_evaluation(layout: Layout, *, baseline: str, candidate: str) -> Attached:
    """The comparison of these two releases.

    Raises:
        NotFound: nobody attached one.
        VerificationError: EVALUATION_EDITED, or a release was edited.
        StorageError: it can not be read.
    """
    path = layout.evaluation(baseline=baseline, candidate=candidate)
    with storage_errors(f"reading the evaluation of {candidate}"):
        try:
            data = layout.store.read(path)
        except FileNotFoundError as error:
            raise NotFound(
                f"no comparison of {candidate} with {baseline} is attached; evaluate both, then: acemath eval compare, "
                "acemath registry gates attach"
            ) from error
    attached = _decoded(data, path.name)
    sides = (attached.comparison.baseline, attached.comparison.candidate)
    digests = (_bound(layout, sides[0]).sha256, _bound(layout, sides[1]).sha256)
    if (sides[0].release, sides[1].release) != (baseline, candidate) or digests != (
        attached.baseline_sha256,
        attached.candidate_sha256,
    ):
        raise _edited(path.name)
    return attached


def _decoded(data: bytes, name: str) -> Attached:
    document = decode(data, file=name, reason=RejectReason.EVALUATION_EDITED)
    try:
        attached = Attached.model_validate(document)
    except ValidationError as error:
        raise _edited(name) from error
    if digest_of(attached.comparison) != attached.comparison_sha256:
        raise _edited(name)
    return attached


def _bound(layout: Layout, side: Sampled) -> Release:
    """The release of one side, which the answers named and whose versions they named too."""
    release = read_release(layout, side.release)
    if (str(release.policy.ref), str(release.reward.ref)) != (side.policy, side.reward):
        raise InvalidRequest(
            f"the comparison says that {side.release} is {side.policy} and {side.reward}, the registry says "
            f"{release.policy.ref} and {release.reward.ref}; compare runs of a gateway that reads this registry"
        )
    return release


def _edited(name: str) -> VerificationError:
    return VerificationError(
        RejectReason.EVALUATION_EDITED, "is not the comparison that was attached; attach it again", file=name
    )
