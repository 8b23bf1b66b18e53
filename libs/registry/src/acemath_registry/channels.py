"""A channel's record: the release that is current and, for a while, one that gets a share of the requests beside it."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from acemath_registry.documents import decode, encode
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.layout import Layout
from acemath_registry.refs import RELEASE_PATTERN


class Canary(BaseModel):
    """A release that a share of the requests gets before all of them do.

    Attributes:
        release: its id.
        release_sha256: of its file.
        share: of the requests, above 0 and at most 1; only records of before may have 1.
        by: who began it, or changed its share.
        at: when it began, in UTC; a change of the share keeps it.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    release: str = Field(pattern=f"^{RELEASE_PATTERN.pattern}$")
    release_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    share: float = Field(gt=0.0, le=1.0)
    by: str
    at: AwareDatetime


class Channel(BaseModel):
    """The pointer that services follow.

    Attributes:
        release: id of the current release.
        release_sha256: of the current release's file.
        generation: 1 for the first promotion, one more for each change.
        previous: id of the release that gateways served before this one, or, where none said so, that the channel
            named; what a rollback promotes.
        by: who made the release the current one.
        at: when, in UTC; for people, never for ordering.
        canary: a release that gets a share of the requests; None, and not in the record, while there is none.
        rollback: whether a rollback brought the release, so that `previous` is the one that was taken back; only in the
            record where it is true.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    release: str = Field(pattern=f"^{RELEASE_PATTERN.pattern}$")
    release_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    generation: int = Field(ge=1)
    previous: str | None = Field(default=None, pattern=f"^{RELEASE_PATTERN.pattern}$")
    by: str
    at: AwareDatetime
    canary: Canary | None = None
    rollback: bool = False

    def document(self) -> dict[str, Any]:
        """The record as JSON; what does not apply is left out, as before there was any of it."""
        return self.model_dump(
            mode="json", exclude={name for name in ("canary", "rollback") if not getattr(self, name)}
        )

    def encoded(self) -> bytes:
        """The bytes of the channel's file."""
        return encode(self.document())


def current_channel(layout: Layout, name: str) -> Channel | None:
    """Where the channel points, its release not looked at; None when nothing was promoted yet.

    Raises:
        InvalidRequest: `name` can not be a channel's name.
        VerificationError: the channel is malformed.
        StorageError: it can not be read.
    """
    path = layout.channel(name)
    with storage_errors(f"reading channel {name}"):
        try:
            data = layout.store.read(path)
        except FileNotFoundError:
            return None
    return decoded(data, path.name)


def decoded(data: bytes, file: str) -> Channel:
    """The channel of a file's bytes.

    Raises:
        VerificationError: they are none.
    """
    document = decode(data, file=file, reason=RejectReason.CHANNEL_MALFORMED)
    try:
        return Channel.model_validate(document)
    except ValidationError as error:
        detail = "is not a channel of this schema; restore it from a backup, or remove it and promote again"
        raise VerificationError(RejectReason.CHANNEL_MALFORMED, detail, file=file) from error
