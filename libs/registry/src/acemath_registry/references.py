"""Which versions somebody still names, and who: what may never be removed.

Named are: what each channel points at, what it pointed at before, and the last few releases of its history (the audit
log); every release and version in a status record, so also what gateways hold leases on; the base of every adapter
version. A document that can not be read may name anything: then nothing is known, and nothing may go.

Of policy agents and reward services a record that was not written for long names nothing: a replica that lives writes
every few seconds, and one that cannot write serves its private copy. Of a gateway it may still hold a job, and counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from acemath_registry.audit import AuditEvent, read_log
from acemath_registry.errors import InvalidRequest, NotFound, storage_errors
from acemath_registry.files import OWN_NAMES
from acemath_registry.layout import Layout
from acemath_registry.manifest import ADAPTER_CONFIG_NAME
from acemath_registry.refs import RELEASE_PATTERN, VERSION_PATTERN, ModelRef
from acemath_registry.releases import read_channel, read_release
from acemath_registry.status import read_statuses
from acemath_registry.verify import read_manifest

HISTORY: Final = 5
"""Releases of a channel's history that are kept, the current one among them."""

REPLICAS: Final = ("policy", "reward")
"""Services whose replicas serve private copies."""

_ENDED_SERVICES: Final = frozenset({"forgotten-gateway"})  # written down for people; holds nothing any more


def named_versions(layout: Layout, history: int = HISTORY, heard_since: float = 0.0) -> dict[ModelRef, str]:
    """Version → who names it, in words.

    Args:
        layout: of the registry.
        history: how many of each channel's last releases count.
        heard_since: Unix time; what a replica (`REPLICAS`) wrote before it names nothing.

    Raises:
        VerificationError: a channel, release, status record or an adapter version's manifest is damaged, so that what
            it names is not known.
        StorageError: one can not be read.
    """
    found: dict[ModelRef, str] = {}
    records = tuple(
        _of_status(layout, heard_since)
    )  # before the channels: who promotes announces it until the channel is written
    for release, who in (*_of_channels(layout, history), *records, *_of_adapters(layout)):
        for ref in _members(layout, release) if isinstance(release, str) else (release,):
            found.setdefault(ref, who)
    return found


def _of_channels(layout: Layout, history: int) -> Iterator[tuple[str | ModelRef, str]]:
    with storage_errors("listing the channels"):
        names = layout.store.names(layout.channels)
    past = _history(layout)
    for name in names:
        channel = read_channel(layout, name)
        yield channel.release, f"channel {name} points at it"
        if channel.previous is not None:
            yield channel.previous, f"channel {name} would roll back to it"
        if channel.canary is not None:
            yield channel.canary.release, f"channel {name} gives it a share of the requests"
        for release in past[name][:history]:
            yield release, f"channel {name} pointed at it lately"


def _history(layout: Layout) -> dict[str, list[str]]:
    """Channel → its releases, the newest first, each once."""
    past: dict[str, list[str]] = defaultdict(list)
    for entry in reversed(read_log(layout)):
        if entry.event in (AuditEvent.PROMOTE, AuditEvent.ROLLBACK):
            for release in (entry.after, entry.before):
                if release is not None and release not in past[entry.what]:
                    past[entry.what].append(release)
    return past


def _of_status(layout: Layout, heard_since: float) -> Iterator[tuple[str | ModelRef, str]]:
    with storage_errors("listing the status records"):
        services = layout.store.folders(layout.statuses)
    for service in services:
        if service in _ENDED_SERVICES:
            continue
        for instance, document in read_statuses(layout, service).items():
            if is_silent(service, document, heard_since):
                continue
            for name in named_in(document):
                yield name, f"the status record {service}/{instance} names it"


def is_silent(service: str, document: dict[str, Any], heard_since: float) -> bool:
    """Whether a record is of a replica that has not written since (Unix time); one without a time is of none."""
    at = document.get("at")
    return service in REPLICAS and isinstance(at, int | float) and at < heard_since


def _of_adapters(layout: Layout) -> Iterator[tuple[ModelRef, str]]:
    """The base of each adapter version that is in the registry."""
    with storage_errors("listing the adapters"):
        found = layout.store.versions(layout.models, holding=ADAPTER_CONFIG_NAME)
    for ref in (ModelRef(*one) for one in found):
        with suppress(NotFound), layout.store.opened(layout.version(ref), OWN_NAMES) as directory:  # not removed since
            adapter = read_manifest(ref, directory).adapter
            if adapter is not None:
                yield adapter.base_ref, f"{ref} is an adapter on it"


def named_in(document: Any) -> Iterator[str | ModelRef]:
    """Every release id and version anywhere in a document, keys too (leases are counted by release)."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from named_in(key)
            yield from named_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from named_in(value)
    elif isinstance(document, str) and RELEASE_PATTERN.fullmatch(document):
        yield document
    elif isinstance(document, str) and VERSION_PATTERN.fullmatch(document.rpartition("@")[2]):
        with suppress(InvalidRequest):  # it only looks like a version
            yield ModelRef.parse(document)


def _members(layout: Layout, release_id: str) -> tuple[ModelRef, ...]:
    try:
        release = read_release(layout, release_id)
    except NotFound:
        return ()  # it names nothing that could be loaded
    return release.policy.ref, release.reward.ref
