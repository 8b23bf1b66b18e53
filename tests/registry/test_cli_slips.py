"""What people do in a hurry or find by chance: a name with a typo, an account without a name, a disk that gives up."""

import io
import json
import pwd
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from registry.test_cli import Cli
from registry.tiny import METADATA, SMALL
from rich.console import Console

from acemath_registry import ModelRef, Registry, StorageError, cli_output
from acemath_registry import collect as collecting
from acemath_registry.audit import acting_user
from acemath_registry.layout import Layout

EAGER = ("gc", "--newest", "0", "--age-hours", "0", "--grace-hours", "0")


@pytest.fixture
def cli(registry: Registry) -> Cli:
    return Cli(registry.root)


@pytest.fixture
def pair(policy: ModelRef, reward: ModelRef) -> tuple[str, ...]:
    return ("--policy", str(policy), "--reward", str(reward))


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> str:
    """Nobody has heard of this process' account, as where Kubernetes chose its number."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    return acting_user()


def test_an_account_without_a_name_is_its_number(cli: Cli, pair: tuple[str, ...], nameless: str) -> None:
    assert nameless.startswith("uid ")
    assert cli.json("promote", "default", *pair, "--new")["by"] == nameless
    assert cli.json("promote", "default", "--again")["by"] == nameless
    cli.json("gates", "set", "default", "--canary", "declared")
    cli.json("gc", "--apply")
    assert "no release before" in cli.error("rollback", "default")["message"]
    assert "has written no status" in cli.error("forget-gateway", "g1")["message"]
    assert "--sign-key" in cli.run("sign", "default").stderr
    assert {entry["by"] for entry in cli.json("log", "default")["log"]} == {nameless}


def test_a_typo_makes_no_channel(cli: Cli, registry: Registry, pair: tuple[str, ...]) -> None:
    error = cli.error("promote", "default", *pair)
    assert (error["code"], error["param"]) == ("not_found", "channel")
    assert "this registry has none yet" in error["message"] and "--new" in error["message"]
    release = cli.json("promote", "default", *pair, "--new")["release"]
    cli.json("promote", "spare", *pair, "--expect", "0")
    for option in ((), ("--again",), ("--expect", "1")):
        error = cli.error("promote", "defualt", "--release", release, *option)
        assert error["code"] == "not_found" and "default, spare" in error["message"]
    assert "exists already" in cli.error("promote", "default", *pair, "--new")["message"]
    assert cli.error("promote", "other", *pair, "--new", "--expect", "2")["param"] == "new"
    assert registry.channel_names() == ["default", "spare"]


def test_what_was_collected_before_an_error_is_said(
    cli: Cli, registry: Registry, policy: ModelRef, reward: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.json(*EAGER, "--apply")
    remove = collecting._Collection._remove

    def stopped(self: object, ref: ModelRef) -> str | None:
        if ref == reward:
            raise StorageError("removing failed: the disk gave up")
        return remove(self, ref)  # type: ignore[arg-type]

    monkeypatch.setattr(collecting._Collection, "_remove", stopped)
    result = cli.run(*EAGER, "--apply", "--json")
    assert result.exit_code == 1 and json.loads(result.stderr)["error"]["message"].endswith("the disk gave up")
    (row,) = json.loads(result.stdout)["collected"]
    assert (row["model"], row["action"], row["done"]) == (str(policy), "remove", True)
    assert registry.versions() == [reward]
    result = cli.run(*EAGER, "--apply")
    assert result.exit_code == 1 and result.stdout == "", "nothing was done this time"


def test_who_stops_a_collection_is_told_what_it_did(
    cli: Cli, policy: ModelRef, reward: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(layout: Layout, *given: object, **named: object) -> Iterator[collecting.Verdict]:
        yield collecting.Verdict(policy, collecting.Action.REMOVE, "nobody has named it", 100, done=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "collect", interrupted)
    result = cli.run(*EAGER, "--apply")
    assert result.exit_code != 0 and str(policy) in result.stdout and "1 of 1 versions removed" in result.stderr


def test_collecting_shows_how_far_it_is(
    cli: Cli, policy: ModelRef, reward: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(cli_output, "Console", partial(Console, file=drawn, force_terminal=True, width=100))
    cli.run("gc")
    assert all(said in drawn.getvalue() for said in ("reading manifests", "planning", "2/2", "versions"))


def test_every_pass_over_the_weights_is_in_the_bar(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(phase: str, done: int, total: int) -> None:
        told.setdefault(phase, []).append((done, total))

    ref = registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA, progress=progress)
    assert list(told) == ["copying", "checking numbers", "hashing"]
    assert all(calls[0][0] == 0 and calls[-1][0] == calls[-1][1] > 0 for calls in told.values())
    told.clear()
    registry.verify(ref, progress=progress)
    size = sum(len(data) for _, _, data in SMALL.values())
    assert list(told) == ["hashing", "checking numbers"] and told["checking numbers"][-1] == (size, size)


def test_a_signature_that_nobody_looked_at_is_not_known(cli: Cli, policy: ModelRef) -> None:
    (row,) = cli.json("verify", str(policy))["verified"]
    assert row["signed"] is None
    assert cli.run("verify", str(policy)).stdout.splitlines()[1].split("\t")[3] == ""


@pytest.mark.parametrize("command", [("rollback",), ("show",), ("verify",), ("canary", "--stop")])
def test_a_channel_that_is_not_there_is_told_those_that_are(
    cli: Cli, pair: tuple[str, ...], command: tuple[str, ...]
) -> None:
    name, *options = command
    said = cli.error(name, "defualt", *options)
    assert said["code"] == "not_found" and "this registry has none yet" in said["message"]
    cli.json("promote", "default", *pair, "--new")
    assert "those that do: default" in cli.error(name, "defualt", *options)["message"]


@pytest.mark.parametrize("command", [("gates", "set"), ("gates", "show"), ("watch", "set"), ("watch", "show")])
def test_what_is_asked_of_no_channel_is_noted(cli: Cli, pair: tuple[str, ...], command: tuple[str, ...]) -> None:
    release = cli.json("promote", "default", *pair, "--new")["release"]
    noted = cli.run(*command, "defualt")
    assert noted.exit_code == 0 and noted.stderr.startswith("note: channel 'defualt' does not exist")
    assert cli.run(*command, "default").stderr == ""
    assert "note:" in cli.run("gates", "check", "defualt", "--release", release).stderr
