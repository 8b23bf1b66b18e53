"""The bodies of the gateway's admin API: API keys with scopes and quotas, and what a channel points at."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from acemath_core.wire import Wire

KEY_ID_PATTERN = r"^key-[0-9a-f]{16}$"
_RELEASE = r"^r-[0-9a-f]{12}$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.@:+/ -]{0,63}$"


class KeyScope(StrEnum):
    """What a key may be made for; none includes another."""

    SOLVE = "solve"  # POST /v1/solve and /v1/chat/completions
    JOBS = "jobs"  # everything under /v1/jobs
    ADMIN = "admin"  # everything under /admin


def _once_each(scopes: tuple[KeyScope, ...]) -> tuple[KeyScope, ...]:
    if len(set(scopes)) < len(scopes):
        raise ValueError("names a scope twice; name each once")
    return tuple(sorted(scopes))


Scopes = Annotated[
    tuple[KeyScope, ...], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(_once_each)
]


class Quotas(Wire):
    """What one key may use, over all gateways; null is no quota."""

    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000, description="solves that were started")
    tokens_per_minute: int | None = Field(
        None, ge=1, le=1_000_000_000, description="generated tokens, those of candidates that lost too"
    )
    sequences_in_flight: int | None = Field(None, ge=1, le=16_384, description="candidates being made at once")

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(value is not None for value in self.model_dump().values())


class KeyRequest(Wire):
    """`POST /admin/v1/keys`."""

    name: str = Field(pattern=_NAME, description="for people: who has the key")
    scopes: Scopes
    quotas: Quotas = Quotas()


class KeyChange(Wire):
    """`PATCH /admin/v1/keys/{id}`: what is named is changed, everything else stays (JSON Merge Patch, RFC 7396).

    What a key opens is not changed: who needs another scope gets another key.
    """

    name: str | None = Field(None, pattern=_NAME, description="the new name; null: the old one")
    quotas: Quotas | None = Field(
        None, description="a number sets a quota, null takes it away; those that are not named stay"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.name is None and (self.quotas is None or not self.quotas.model_fields_set):
            raise ValueError("names nothing to change; give name or quotas")
        return self

    def of(self, quotas: Quotas) -> Quotas:
        """Quotas with these changes."""
        named = self.quotas.model_dump(exclude_unset=True) if self.quotas is not None else {}
        return Quotas(**(quotas.model_dump() | named))


class KeyInfo(Wire):
    """A key as everybody may know it.

    Attributes:
        id: names the key in logs, in `PATCH` and in `DELETE`.
        last_four: the key's last four characters, to tell keys apart.
        created_by: id of the key that made it.
        revoked_at: when it was revoked, in UTC; None while it is valid.
    """

    object: Literal["api_key"] = "api_key"
    id: str = Field(pattern=KEY_ID_PATTERN)
    name: str
    scopes: Scopes
    quotas: Quotas
    last_four: str
    created_at: AwareDatetime
    created_by: str
    revoked_at: AwareDatetime | None = None


class NewKey(KeyInfo):
    """The answer that makes a key: the only one that holds the key itself."""

    key: str


class KeyList(Wire):
    """`GET /admin/v1/keys`: the newest first; revoked ones for 90 days."""

    object: Literal["list"] = "list"
    data: tuple[KeyInfo, ...]


class PromoteRequest(Wire):
    """`POST /admin/v1/releases/{channel}`."""

    release: str = Field(pattern=_RELEASE, description="id of a release in the registry")
    expected_generation: int | None = Field(
        None,
        ge=0,
        description="only if the channel is at this generation; 0 begins one; without it the channel must exist",
    )
    again: bool = Field(
        False, description="let replicas try a version once more that they rejected, also where the release is current"
    )


class RollbackRequest(Wire):
    """`POST /admin/v1/releases/{channel}/rollback`; without a field it does not undo a rollback."""

    expected_generation: int | None = Field(None, ge=1, description="only if the channel is at this generation")
    from_release: str | None = Field(
        None, alias="from", pattern=_RELEASE, description="id of the release that is to go: only if it is current"
    )


class ChannelInfo(Wire):
    """Where a channel points now.

    Attributes:
        generation: one more for each change.
        previous: the release before, which a rollback promotes; None for the first.
        by: who changed it.
        changed: whether this request did; False where the release was current already.
    """

    object: Literal["channel"] = "channel"
    channel: str
    release: str
    generation: int
    previous: str | None
    by: str
    at: AwareDatetime
    changed: bool
