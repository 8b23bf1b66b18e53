"""Giving a release a share of a channel's requests before it gets all of them, and taking the share away.

A share is a field of the channel's record and changes as everything there does: by compare-and-set, with the generation
growing by one. Promoting the release, or any other, and rolling back end it.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from acemath_registry.audit import AuditEvent, record
from acemath_registry.channels import Canary, Channel, decoded
from acemath_registry.errors import Conflict, InvalidRequest, storage_errors
from acemath_registry.layout import Layout
from acemath_registry.moves import Gatekeeper, change_once, check_generation, retried
from acemath_registry.refs import check_by, check_reason
from acemath_registry.releases import Release, existing

_AGAIN = "again: what replicas rejected before was let pass"


def begin_canary(
    layout: Layout,
    name: str,
    release_id: str,
    share: float,
    *,
    expected_generation: int | None,
    by: str,
    gatekeeper: Gatekeeper,
    why: str | None = None,
    again: bool = False,
) -> Channel:
    """Give a release a share of the channel's requests, or the one that has a share another; the same changes nothing.

    Args:
        layout: of the registry.
        name: of the channel.
        release_id: of the release.
        share: of the requests, above 0 and below 1: with none left for the current release nothing could be compared.
        expected_generation: what the caller saw; None for "whatever it is".
        by: who asks, for the record.
        gatekeeper: asked before a share begins, not before it changes.
        why: for the audit log.
        again: give also the same share a new generation, so that replicas try once more what they rejected.

    Raises:
        InvalidRequest: a share, name, `by` or `why` that can not be one.
        NotFound: the channel, the release or a version of it does not exist.
        Conflict: the release is current, another one has a share, or the generation is another one.
        VerificationError: the release or a manifest was edited.
        LockTimeout, StorageError: it can not be written now.
    """
    _check_said(by, why)
    _check_share(name, release_id, share)

    def target(current: Channel | None) -> str:
        found = existing(name, current)
        check_generation(name, found, expected_generation)
        _check_free(name, found, release_id)
        return release_id

    def following(current: Channel | None, release: Release) -> Channel:
        return _with_share(existing(name, current), release, share, by, again)

    def keep(current: Channel | None, release: Release) -> None:
        if current is None or current.canary is None:  # one that has a share was let in
            gatekeeper(current, release)

    current, changed = retried(lambda: change_once(layout, name, target, following, keep))
    if changed != current:
        parts = (f"a share of {share:g}", why, _AGAIN if again else None)
        said = "; ".join(part for part in parts if part is not None)
        _record(layout, AuditEvent.CANARY, name, changed, release_id, by, said)
    return changed


def stop_canary(
    layout: Layout, name: str, *, expected_generation: int | None, by: str, why: str | None = None
) -> Channel:
    """Take the share away: every new request gets the current release. `why` is for the audit log.

    It reads nothing but the channel, so that it works whatever became of the release.

    Raises:
        InvalidRequest: a name, `by` or `why` that can not be one.
        NotFound: the channel does not exist.
        Conflict: no release has a share, another one has it since the first try, or the generation is another one.
        VerificationError: the channel is malformed.
        LockTimeout, StorageError: it can not be written now.
    """
    _check_said(by, why)
    tried: set[str] = set()
    current, changed = retried(lambda: _stop_once(layout, name, expected_generation, tried))
    ended = current.canary.release if current is not None and current.canary is not None else None
    _record(layout, AuditEvent.CANARY_STOP, name, changed, ended, by, why)
    return changed


def _stop_once(layout: Layout, name: str, expected: int | None, tried: set[str]) -> tuple[Channel | None, Channel]:
    path = layout.channel(name)
    with storage_errors(f"changing channel {name}"), layout.store.changing(path, layout.channel_lock(name)) as change:
        data = change.read()
        current = existing(name, None if data is None else decoded(data, path.name))
        check_generation(name, current, expected)
        if current.canary is None:
            raise Conflict(f"no release has a share of channel {name!r}; nothing was changed", should_retry=False)
        tried.add(current.canary.release)
        if len(tried) > 1:  # a try that was overtaken goes on only with the release that it began with
            said = f"{current.canary.release} has the share of channel {name!r} meanwhile; nothing was changed"
            raise Conflict(f"{said}; look at it again, then decide", should_retry=False)
        changed = current.model_copy(update={"generation": current.generation + 1, "canary": None})
        change.write(changed.encoded())
    return current, changed


def _check_said(by: str, why: str | None) -> None:
    check_by(by)
    if why is not None:
        check_reason(why)


def _check_share(name: str, release_id: str, share: float) -> None:
    if share == 1.0:
        raise InvalidRequest(
            "a share of 1 leaves no request to the current release, so that nothing could be compared; "
            f"promote it instead: acemath registry promote {name} --release {release_id}",
            param="share",
        )
    if not (math.isfinite(share) and 0.0 < share < 1.0):
        raise InvalidRequest(f"{share:g} is no share of the requests; give more than 0 and less than 1", param="share")


def _check_free(name: str, channel: Channel, release_id: str) -> None:
    if release_id == channel.release:
        raise Conflict(
            f"{release_id} is the current release of channel {name!r} and gets every request", should_retry=False
        )
    if channel.canary is not None and channel.canary.release != release_id:
        raise Conflict(
            f"{channel.canary.release} has a share of channel {name!r}, and replicas keep two versions; "
            f"stop it first: acemath registry canary {name} --stop",
            should_retry=False,
        )


def _with_share(channel: Channel, release: Release, share: float, by: str, again: bool) -> Channel:
    before = channel.canary
    if before is not None and before.share == share and not again:
        return channel
    canary = Canary(
        release=release.id,
        release_sha256=release.sha256,
        share=share,
        by=by,
        at=datetime.now(UTC) if before is None else before.at,
    )
    return channel.model_copy(update={"generation": channel.generation + 1, "canary": canary})


def _record(
    layout: Layout, event: AuditEvent, name: str, channel: Channel, release: str | None, by: str, why: str | None
) -> None:
    """Of a share's begin and change the line goes `to` its release, of its end `from` it."""
    begins = event is AuditEvent.CANARY
    record(
        layout,
        event,
        by=by,
        what=name,
        before=channel.release if begins else release,
        after=release if begins else channel.release,
        generation=channel.generation,
        why=why,
    )
