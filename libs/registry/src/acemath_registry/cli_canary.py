"""`acemath registry canary`: a share of a channel's requests for a release that is not current yet."""

from __future__ import annotations

from typing import Annotated

import typer

from acemath_core.errors import InvalidRequest
from acemath_registry.cli_common import (
    DEFAULT_ROOT,
    AsJson,
    By,
    ChannelName,
    Root,
    errors,
    existing,
    override_of,
    require_channel,
    warn_of_shorter,
)
from acemath_registry.cli_output import print_document


def canary(
    channel: ChannelName,
    by: By,
    release: Annotated[str | None, typer.Argument(help="Id of the release that gets a share.")] = None,
    share: Annotated[float | None, typer.Option(help="Of the requests: above 0, below 1; promote for all.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Take the share away.")] = False,
    expect: Annotated[int | None, typer.Option("--expect", min=1, help="Only at this generation.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Let replicas try a rejected version once more.")] = False,
    override_gates: Annotated[
        bool, typer.Option("--override-gates", help="With --reason: begin what the channel's gates refuse.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit log.")] = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Give a release a share of the requests beside the current one, change the share, or take it away."""
    with errors(as_json):
        registry = existing(root)
        require_channel(registry, channel)
        if stop:
            if release is not None or share is not None or override_gates or again:
                said = "--stop takes no release, no --share, no --again and no --override-gates"
                raise InvalidRequest(said, param="stop")
            changed = registry.stop_canary(channel, by=by, expected_generation=expect, why=reason)
        else:
            if release is None or share is None:
                raise InvalidRequest("give a release and --share, or --stop", param="release")
            override = override_of(override_gates, reason)
            changed = registry.canary(
                channel, release, share, by=by, expected_generation=expect, override=override, why=reason, again=again
            )
            if changed.canary is not None:
                warn_of_shorter(registry, changed.release, changed.canary.release)
    print_document({"channel": channel, **changed.document()}, as_json=as_json)
