"""What each replica observes, as one small file that it alone writes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from acemath_registry.documents import decode, encode
from acemath_registry.errors import InvalidRequest, NotFound, RejectReason, storage_errors
from acemath_registry.layout import Layout


def write_status(layout: Layout, service: str, instance: str, document: dict[str, Any]) -> None:
    """Replace the status of one instance in one step.

    Raises:
        InvalidRequest: a name that can not be one, or a document that is not JSON.
        StorageError: the mount is read-only or full; the caller decides whether that matters.
    """
    path = layout.status(service, instance)
    try:
        data = encode(document)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the status of {service}/{instance} is not JSON ({error}); send plain values") from error
    with storage_errors(f"writing the status of {service}/{instance}"):
        layout.store.replace(path, data)


def read_status(layout: Layout, service: str, instance: str) -> dict[str, Any]:
    """What one instance wrote last.

    Raises:
        InvalidRequest: a name that can not be one.
        NotFound: it wrote nothing.
        VerificationError: the file is not JSON.
        StorageError: it can not be read.
    """
    path = layout.status(service, instance)
    with storage_errors(f"reading the status of {service}/{instance}"):
        try:
            data = layout.store.read(path)
        except FileNotFoundError as error:
            raise NotFound(f"{service}/{instance} has written no status; is it running?", param="instance") from error
    return decode(data, file=path.name, reason=RejectReason.MANIFEST_MALFORMED)


def read_statuses(layout: Layout, service: str, channel: str | None = None) -> dict[str, dict[str, Any]]:
    """Instance → what it wrote last, for all instances of a service; empty when none wrote.

    Several stacks may use one registry, each on a channel of its own, and their generations have nothing to do with
    each other. A record that names no channel (of an instance from before they did) may be of any.

    Args:
        layout: of the registry.
        service: whose instances.
        channel: leave out what instances on other channels wrote; None: all.

    Raises:
        InvalidRequest, VerificationError, StorageError: as `read_status`.
    """
    folder = layout.status(service)
    with storage_errors(f"listing the status of {service}"):
        names = layout.store.names(folder)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        with suppress(NotFound):  # it was taken away since
            found[name] = read_status(layout, service, name)
    return {name: read for name, read in found.items() if channel is None or read.get("channel", channel) == channel}


def remove_status(layout: Layout, service: str, instance: str) -> None:
    """Take away what one instance wrote, durably.

    Raises:
        InvalidRequest: a name that can not be one.
        NotFound: it wrote nothing.
        StorageError: it can not be removed.
    """
    path = layout.status(service, instance)
    with storage_errors(f"removing the status of {service}/{instance}"):
        try:
            layout.store.remove(path)
        except FileNotFoundError as error:
            raise NotFound(
                f"{service}/{instance} has written no status; nothing to forget", param="instance"
            ) from error
