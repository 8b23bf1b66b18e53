"""Who did what to the registry, and when: one line a change, only ever appended to.

A line is written after its change, so that it never tells of one that did not happen; a process that is killed between
the two leaves a change without a line (of a channel's, the next line's generation shows the gap). That a line cannot be
written is logged and stops nobody: a replica's mount may be read-only.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from acemath_registry.errors import LockTimeout, NotFound, StorageError, storage_errors
from acemath_registry.layout import Layout

_log = logging.getLogger(__name__)

MAX_TAIL_BYTES: Final = 16 * 1024 * 1024
"""As much of the log's end is read; some sixty thousand changes."""
_MAX_TEXT: Final = 500


class AuditEvent(StrEnum):
    """What was done."""

    PUBLISH = "publish"
    PROMOTE = "promote"
    PROMOTE_AGAIN = "promote_again"  # the release that was current already, for replicas that had rejected it
    ROLLBACK = "rollback"
    CANARY = "canary"  # a release gets a share of a channel's requests, or another share
    CANARY_STOP = "canary_stop"
    REJECT = "reject"
    MARK = "mark"
    UNMARK = "unmark"
    REMOVE = "remove"
    SIGN = "sign"
    FORGET_GATEWAY = "forget_gateway"
    ATTACH_EVALUATION = "attach_evaluation"
    GATES = "gates"  # written before the change, which does not take place without it
    BANDS = "bands"  # as GATES
    OVERRIDE_GATES = "override_gates"  # as GATES; the promotion's own line follows


CHANGES: Final = frozenset(
    {
        AuditEvent.PROMOTE,
        AuditEvent.PROMOTE_AGAIN,
        AuditEvent.ROLLBACK,
        AuditEvent.CANARY,
        AuditEvent.CANARY_STOP,
    }
)
"""What moves a channel's generation."""


class AuditEntry(BaseModel):
    """One change.

    Attributes:
        at: when, in UTC.
        event: what was done.
        by: who did it: a person, or a service's instance.
        what: the version, channel or gateway it was done to.
        before: of a channel: the release that was current; JSON key `from`.
        after: of a channel: the release that is current now; JSON key `to`.
        generation: of a channel: its new one.
        why: the reason, where there is one.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    at: AwareDatetime
    event: AuditEvent
    by: str
    what: str
    before: str | None = Field(None, alias="from")
    after: str | None = Field(None, alias="to")
    generation: int | None = None
    why: str | None = None


def acting_user() -> str:
    """The name of the account that this process runs under, or its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def record(
    layout: Layout,
    event: AuditEvent,
    *,
    by: str,
    what: str,
    before: str | None = None,
    after: str | None = None,
    generation: int | None = None,
    why: str | None = None,
) -> bool:
    """Append one line, durable before return; False when that is not possible, which is logged."""
    reason = why if why is None else why[:_MAX_TEXT]
    entry = AuditEntry(
        at=datetime.now(UTC), event=event, by=by[:_MAX_TEXT], what=what, before=before, after=after,
        generation=generation, why=reason,
    )  # fmt: skip
    line = json.dumps(entry.model_dump(mode="json", by_alias=True, exclude_none=True), ensure_ascii=False)
    try:
        with storage_errors("writing the audit log"):
            layout.store.append(layout.audit, layout.audit_lock, line.encode() + b"\n")
    except (StorageError, LockTimeout, NotFound) as error:
        _log.warning("%s of %s by %s is not in the audit log: %s", event.value, what, by, error.message)
        return False
    return True


def require_record(
    layout: Layout,
    event: AuditEvent,
    *,
    by: str,
    what: str,
    before: str | None = None,
    after: str | None = None,
    why: str,
) -> None:
    """Append a line before a change that may not take place without it.

    Raises:
        StorageError: the log cannot be written.
    """
    if not record(layout, event, by=by, what=what, before=before, after=after, why=why):
        raise StorageError(
            f"{event.value} needs its line in the audit log, which cannot be written here; nothing was changed; "
            "run it where the registry is writable"
        )


def read_log(layout: Layout) -> list[AuditEntry]:
    """The last changes, the oldest first; a line that was torn or is none is left out and counted in the log.

    Raises:
        StorageError: it can not be read.
    """
    with storage_errors("reading the audit log"):
        lines = layout.store.tail(layout.audit, MAX_TAIL_BYTES)
    entries: list[AuditEntry] = []
    for line in lines:
        try:
            entries.append(AuditEntry.model_validate_json(line))
        except ValidationError:
            _log.warning("a line of the audit log cannot be read; it is left out")
    return entries
