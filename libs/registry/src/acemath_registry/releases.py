"""Releases (one policy and one reward version, immutable), and reading where a channel points; `moves` changes that.

A reader follows channel → release → two versions, each link checked by a sha256; it never lists a directory.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acemath_registry.channels import Channel, current_channel
from acemath_registry.documents import decode, encode, sha256_hex
from acemath_registry.errors import NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.layout import Layout
from acemath_registry.manifest import ModelKind
from acemath_registry.members import manifest_digest
from acemath_registry.refs import ModelRef


class ReleaseMember(BaseModel):
    """One version in a release, with the sha256 of its manifest's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def ref(self) -> ModelRef:
        """The version."""
        return ModelRef(self.name, self.version)


class Release(BaseModel):
    """A policy and a reward version that belong together; its id is made from its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ReleaseMember
    reward: ReleaseMember

    @property
    def sha256(self) -> str:
        """The sha256 of the release's file."""
        return sha256_hex(self.encoded())

    @property
    def id(self) -> str:
        """`r-` and the first 12 hex digits of `sha256`."""
        return f"r-{self.sha256[:12]}"

    def member(self, kind: ModelKind) -> ReleaseMember:
        """The policy or the reward version."""
        return self.policy if kind is ModelKind.POLICY else self.reward

    def encoded(self) -> bytes:
        """The bytes of the release's file."""
        return encode(self.model_dump(mode="json"))


def create_release(layout: Layout, policy: ModelRef, reward: ModelRef) -> Release:
    """Write the release of these two versions; the same two give the same release and change nothing.

    Raises:
        NotFound: a version is not in the registry.
        VerificationError: a manifest is damaged, or a version is not of its kind.
        StorageError: it can not be written.
    """
    release = Release(
        policy=_member(layout, policy, ModelKind.POLICY), reward=_member(layout, reward, ModelKind.REWARD)
    )
    try:
        return read_release(layout, release.id)
    except (NotFound, VerificationError):  # a damaged file of this id can only be meant to hold these bytes
        with storage_errors(f"writing release {release.id}"):
            layout.store.replace(layout.release(release.id), release.encoded())
    return release


def read_release(layout: Layout, release_id: str, *, sha256: str | None = None) -> Release:
    """The release of this id, its bytes checked against the id and, if given, against `sha256`.

    Raises:
        InvalidRequest: not a release id.
        NotFound: no such release.
        VerificationError: RELEASE_EDITED.
        StorageError: it can not be read.
    """
    path = layout.release(release_id)
    with storage_errors(f"reading release {release_id}"):
        try:
            data = layout.store.read(path)
        except FileNotFoundError as error:
            raise NotFound(
                f"release {release_id} is not in the registry; create it from two versions", param="release"
            ) from error
    digest = sha256_hex(data)
    if f"r-{digest[:12]}" != release_id or digest != (sha256 or digest):
        raise VerificationError(
            RejectReason.RELEASE_EDITED, "does not have the bytes it was written with; create it again", file=path.name
        )
    document = decode(data, file=path.name, reason=RejectReason.RELEASE_EDITED)
    try:
        return Release.model_validate(document)
    except ValidationError as error:
        raise VerificationError(
            RejectReason.RELEASE_EDITED, "is not a release of this schema; create it again", file=path.name
        ) from error


def read_channel(layout: Layout, name: str) -> Channel:
    """Where the channel points, after the release it names was found with the digest it names.

    Raises:
        InvalidRequest: `name` can not be a channel's name.
        NotFound: nothing was promoted on it yet.
        VerificationError: the channel is malformed, or its release was edited.
        StorageError: it can not be read.
    """
    channel = existing(name, current_channel(layout, name))
    read_release(layout, channel.release, sha256=channel.release_sha256)
    return channel


def existing(name: str, channel: Channel | None) -> Channel:
    """The channel; raises NotFound when nothing was promoted on it yet."""
    if channel is None:
        raise NotFound(f"channel {name!r} does not exist; promote a release on it first", param="channel")
    return channel


def _member(layout: Layout, ref: ModelRef, kind: ModelKind) -> ReleaseMember:
    return ReleaseMember(name=ref.name, version=ref.version, manifest_sha256=manifest_digest(layout, ref, kind))
