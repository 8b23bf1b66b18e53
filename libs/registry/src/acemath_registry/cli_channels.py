"""`acemath registry promote` and `rollback`: where a channel points.

Both are commands that somebody types in a hurry, so that a name with a typo makes no channel, and a rollback that has
taken place already (the watch was faster) is not undone.
"""

from __future__ import annotations

from typing import Annotated

import typer

from acemath_core.errors import InvalidRequest
from acemath_registry.audit import acting_user
from acemath_registry.cli_common import (
    DEFAULT_ROOT,
    AsJson,
    Root,
    errors,
    existing,
    no_channel,
    override_of,
    require_channel,
    warn_of_shorter,
)
from acemath_registry.cli_output import print_document
from acemath_registry.errors import Conflict, NotFound
from acemath_registry.refs import ModelRef, check_channel_name
from acemath_registry.registry import Registry

Expect = Annotated[
    int | None, typer.Option("--expect", min=0, help="Only if the channel is at this generation; 0 for a new channel.")
]
By = Annotated[str, typer.Option("--by", help="Who changes the channel.", default_factory=acting_user)]


def promote(
    channel: Annotated[str, typer.Argument(help="The channel to point.")],
    by: By,
    release: Annotated[str | None, typer.Option(help="Id of a release that exists.")] = None,
    policy: Annotated[str | None, typer.Option(help="With --reward: make the release of these two versions.")] = None,
    reward: Annotated[str | None, typer.Option(help="With --policy.")] = None,
    expect: Expect = None,
    new: Annotated[bool, typer.Option("--new", help="Begin a channel that does not exist yet.")] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Let replicas try a rejected version once more; alone: of the current release."),
    ] = False,
    override_gates: Annotated[
        bool, typer.Option("--override-gates", help="With --reason: promote what the channel's gates refuse.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit log.")] = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Point a channel at a release, if its gates let it; replicas that follow it verify, load and switch."""
    with errors(as_json):
        registry = existing(root)
        override = override_of(override_gates, reason)
        alone = again and not (release or policy or reward)
        if not alone:
            _check_named(release, policy, reward)
        expect = _expected(registry, channel, expect, new)
        if alone:
            release, expect = _current(registry, channel, expect)
        chosen = _chosen_release(registry, release, policy, reward)
        move = registry.move(
            channel, chosen, expected_generation=expect, by=by, override=override, why=reason, again=again
        )
        before = None if move.before is None else move.before.release
        if before != move.after.release:
            warn_of_shorter(registry, move.after.previous, move.after.release)
    ways = {"from": before, "to": move.after.release}
    print_document({"channel": channel, **ways, **move.after.document(), "changed": move.changed}, as_json=as_json)
    if not move.changed and not as_json:
        said = f"already current (generation {move.after.generation}): nothing changed"
        typer.echo(f"{said}; --again makes replicas try a rejected version once more", err=True)


def rollback(
    channel: Annotated[str, typer.Argument(help="The channel to point back.")],
    by: By,
    from_release: Annotated[
        str | None, typer.Option("--from", help="Id of the bad release: only if the channel still is at it.")
    ] = None,
    expect: Expect = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit log.")] = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Promote the release that was served before; without --from and --expect never one that was taken back."""
    with errors(as_json):
        registry = existing(root)
        require_channel(registry, channel)
        changed = registry.rollback(
            channel, by=by, expected_generation=expect, expected_release=from_release, why=reason, once=True
        )
    ways = {"from": changed.previous, "to": changed.release}
    print_document({"channel": channel, **ways, **changed.document()}, as_json=as_json)


def _expected(registry: Registry, channel: str, expect: int | None, new: bool) -> int | None:
    """The generation that the channel must have; a channel that does not exist has to be meant to be new."""
    missing = no_channel(registry, channel)
    if missing is not None:
        check_channel_name(channel)
    if new and expect:
        said = f"--new begins a channel, and --expect {expect} is of one that exists; leave one of them out"
        raise InvalidRequest(said, param="new")
    if new and missing is None:
        raise Conflict(f"channel {channel!r} exists already; leave --new out to promote on it", param="new")
    if missing is not None and not new and expect != 0:
        raise NotFound(f"{missing}; correct its name, or begin it with --new", param="channel")
    return 0 if new else expect


def _current(registry: Registry, name: str, expect: int | None) -> tuple[str, int]:
    """The channel's release, and the generation at which it is: what is promoted anew is what was looked at."""
    channel = registry.channel(name)
    return channel.release, channel.generation if expect is None else expect


def _check_named(release: str | None, policy: str | None, reward: str | None) -> None:
    if (bool(release), bool(policy), bool(reward)) not in ((True, False, False), (False, True, True)):
        raise InvalidRequest("give --release, or --policy and --reward, and not all of them", param="release")


def _chosen_release(registry: Registry, release: str | None, policy: str | None, reward: str | None) -> str:
    if policy and reward:
        return registry.create_release(ModelRef.parse(policy), ModelRef.parse(reward)).id
    return release or ""
