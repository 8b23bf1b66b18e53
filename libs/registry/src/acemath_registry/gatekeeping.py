"""Declaring a channel's gates, and asking them before a promotion. Each has its line in the audit log."""

from __future__ import annotations

from acemath_registry.audit import AuditEvent, require_record
from acemath_registry.channels import Channel, current_channel
from acemath_registry.documents import encode
from acemath_registry.errors import storage_errors
from acemath_registry.gates import GateRefused, Gates, Refusal, read_gates, refusals
from acemath_registry.layout import Layout
from acemath_registry.moves import Gatekeeper
from acemath_registry.refs import check_by, check_reason
from acemath_registry.releases import Release, read_release
from acemath_registry.served import stands


def set_gates(layout: Layout, channel: str, gates: Gates, *, by: str) -> None:
    """Declare what the channel asks from now on; also before its first promotion.

    Raises:
        InvalidRequest: `channel` or `by` can not be one.
        LockTimeout, StorageError: they, or the line in the audit log, can not be written; nothing was changed.
    """
    check_by(by)
    path = layout.gates(channel)
    doing, lock = f"declaring the gates of channel {channel}", layout.channel_lock(channel)
    with storage_errors(doing), layout.store.changing(path, lock) as change:
        require_record(layout, AuditEvent.GATES, by=by, what=channel, why=describe(gates))
        change.write(encode(gates.model_dump(mode="json")))


def describe(gates: Gates) -> str:
    """What the gates ask, in words."""
    asked = [f"canary {gates.canary.value}"] if gates.canary is not None else []
    asked += [
        f"{one.metric} on {one.set} at most {100 * one.margin:g} points worse, on {one.min_problems} problems or more"
        for one in gates.evaluations
    ]
    return "; ".join(asked) or "nothing"


def ask(layout: Layout, channel: str, release_id: str) -> tuple[Refusal, ...]:
    """Why the channel's gates would refuse this release now; empty when it may be promoted.

    Raises:
        NotFound, VerificationError, StorageError: something that a gate reads is not there or damaged.
    """
    current, release = current_channel(layout, channel), read_release(layout, release_id)
    if current is not None and current.release == release.id:
        return ()
    return refusals(layout, read_gates(layout, channel), _baseline(layout, channel, current), release)


def _baseline(layout: Layout, channel: str, current: Channel | None) -> str | None:
    """What serves: not to be worse than a release that replicas rejected would say nothing."""
    return None if current is None else stands(layout, channel, current)


def gatekeeper(
    layout: Layout, channel: str, *, by: str, override: str | None, again: bool = False, share: bool = False
) -> Gatekeeper:
    """Asks the gates that the channel has at the time of the change; of the release that is current already, nothing.

    Args:
        layout: of the registry.
        channel: whose gates.
        by: who promotes.
        override: the reason to promote what a gate refuses; None to obey.
        again: let pass what replicas that follow this channel rejected until now.
        share: the release is to get a share of the requests, not all of them.

    Raises:
        InvalidRequest: a reason that says nothing.
    """
    if override is not None:
        check_reason(override)

    def keep(current: Channel | None, release: Release) -> None:
        if current is not None and current.release == release.id:
            return
        found = refusals(
            layout, read_gates(layout, channel), _baseline(layout, channel, current), release,
            again_on=channel if again else None, share_on=channel if share else None,
        )  # fmt: skip
        if found and override is None:
            raise GateRefused(channel, release.id, found, share=share)
        if found:
            why = f"{override}; refused by {', '.join(one.reason.value for one in found)}"
            before = current.release if current is not None else None
            require_record(
                layout, AuditEvent.OVERRIDE_GATES, by=by, what=channel, before=before, after=release.id, why=why
            )

    return keep
