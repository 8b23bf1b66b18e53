import io
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from registry.adapters.tiny import publish_base, write_adapter
from rich.console import Console
from typer.testing import CliRunner, Result

from acemath_registry import ModelRef, Registry, cli_output
from acemath_registry.cli import app


class Cli:
    def __init__(self, root: Path) -> None:
        self.root, self.runner = root, CliRunner()

    def run(self, *args: str) -> Result:
        return self.runner.invoke(app, [*args, "--root", str(self.root)], terminal_width=200)

    def json(self, *args: str) -> Any:
        result = self.run(*args, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def error(self, *args: str) -> Any:
        result = self.run(*args, "--json")
        assert result.exit_code == 1 and result.stdout == ""
        return json.loads(result.stderr)["error"]


@pytest.fixture
def cli(registry: Registry) -> Cli:
    return Cli(registry.root)


def test_the_command_is_found_by_its_entry_point() -> None:
    (found,) = entry_points(group="acemath.commands", name="registry")
    assert found.load() is app


def test_from_a_checkpoint_to_a_rollback(cli: Cli, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"step": 3, "licence": "MIT", "metrics": {"pass_at_1": 0.5}}))
    refs = []
    for mark in ("one", "two"):
        source = str(make_checkpoint(mark=mark))
        document = cli.json("publish", source, "--name", "pol", "--kind", "policy", "--metadata", str(metadata))
        refs.append(document["model"])
        assert Path(document["path"]).is_dir()
    reward_source = str(make_checkpoint("reward"))
    options = ("--name", "rew", "--kind", "reward", "--step", "0", "--licence", "MIT")
    reward = cli.json("publish", reward_source, *options)["model"]
    first = cli.json("promote", "default", "--policy", refs[0], "--reward", reward, "--expect", "0", "--by", "ann")
    assert (first["channel"], first["generation"], first["by"]) == ("default", 1, "ann")
    second = cli.json("promote", "default", "--policy", refs[1], "--reward", reward)
    same = cli.json("promote", "default", "--release", second["release"], "--expect", "2")
    assert (second["changed"], same) == (True, second | {"changed": False, "from": second["release"]})
    assert cli.json("rollback", "default", "--expect", "2")["release"] == first["release"]
    shown = cli.json("show", "default")
    assert (shown["policy"], shown["reward"], shown["generation"]) == (refs[0], reward, 3)
    assert cli.json("show", refs[0])["metrics"] == {"pass_at_1": 0.5}
    assert cli.json("show", first["release"]) == {"release": first["release"], "policy": refs[0], "reward": reward}
    for target in ("default", first["release"]):
        assert [one["model"] for one in cli.json("verify", target)["verified"]] == [refs[0], reward]
    overview = cli.json("list")
    assert sorted(one["model"] for one in overview["versions"]) == sorted([*refs, reward])
    assert len(overview["releases"]) == 2 and overview["channels"][0]["generation"] == 3


def test_tables_show_whole_names(cli: Cli, policy: ModelRef, reward: ModelRef) -> None:
    cli.run("promote", "default", "--policy", str(policy), "--reward", str(reward), "--new")
    listed = cli.run("list")
    assert listed.exit_code == 0 and "[" not in listed.stdout.replace("[/]", "")
    text = "".join(character for character in listed.stdout if character.isalnum() or character in "@-")
    assert policy.version[:8] in text and "default" in text
    for command in (("show", str(policy)), ("verify", str(policy)), ("show", "default")):
        result = cli.run(*command)
        assert result.exit_code == 0 and "pol" in result.stdout


def test_a_damaged_version_is_listed_with_what_is_wrong(cli: Cli, registry: Registry, policy: ModelRef) -> None:
    (registry.path(policy) / "manifest.json").unlink()
    assert "manifest_missing" in cli.json("list")["versions"][0]["error"]
    assert "manifest_missing" in cli.run("list").stdout.replace("\n", "").replace(" ", "").replace("│", "")


def test_a_copy_is_verified(cli: Cli, registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    copy = registry.private_copy(policy, tmp_path / "cache")
    assert cli.json("verify", str(policy), "--directory", str(copy))["verified"][0]["model"] == str(policy)
    (copy / "config.json").unlink()
    error = cli.error("verify", str(policy), "--directory", str(copy))
    assert (error["code"], error["reason"]) == ("conflict", "file_missing")
    assert cli.error("verify", "default", "--directory", str(copy))["param"] == "directory"


def test_refusals_are_one_sentence(cli: Cli, policy: ModelRef, make_checkpoint: Callable[..., Path]) -> None:
    source = str(make_checkpoint())
    assert cli.error("show", "absent")["code"] == "not_found"
    assert cli.error("promote", "default", "--policy", str(policy))["param"] == "release"
    assert cli.error("promote", "default", "--release", "r-0123456789ab")["code"] == "not_found"
    assert cli.error("rollback", "default")["code"] == "not_found"
    publish = ("publish", source, "--name", "pol", "--kind", "policy")
    assert cli.error(*publish)["param"] == "step"
    assert cli.error(*publish, "--metadata", source + "/absent.json")["param"] == "metadata"
    assert cli.error(*publish, "--metadata", source + "/model.safetensors")["reason"] == "manifest_malformed"
    result = cli.run("show", "absent")
    assert (result.exit_code, result.stdout) == (1, "") and result.stderr.startswith("error: channel 'absent'")
    assert cli.run("publish", source, "--name", "pol", "--kind", "judge").exit_code == 2


def test_progress_is_drawn_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(cli_output, "Console", partial(Console, file=drawn, force_terminal=True, width=100))
    with cli_output.progress_bar(quiet=True) as progress:
        progress("hashing", 5, 10)
    assert drawn.getvalue() == ""
    with cli_output.progress_bar(quiet=False) as progress:
        for done in (0, 5, 10):
            progress("hashing", done, 10)
    assert "hashing" in drawn.getvalue() and "10/10 bytes" in drawn.getvalue()


def test_no_registry(tmp_path: Path) -> None:
    assert "there is no registry" in Cli(tmp_path / "absent").error("list")["message"]


@pytest.mark.parametrize(
    "command",
    [
        ("show", "pol@s1-0123456789ab"),
        ("verify", "pol@s1-0123456789ab"),
        ("verify", "default"),
        ("rollback", "default"),
        ("forget-gateway", "gw"),
        ("gc",),
        ("log",),
        ("promote", "default", "--release", "r-0123456789ab"),
    ],
)
def test_where_there_is_no_registry_every_command_says_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert "there is no registry at" in Cli(tmp_path / "absent").error(*command)["message"]
    assert not (tmp_path / "absent").exists()


def test_a_model_without_its_version_is_told_the_newest(cli: Cli, policy: ModelRef) -> None:
    for command in ("show", "verify"):
        assert f"NAME@VERSION, for instance {policy}" in cli.error(command, policy.name)["message"]


def test_who_forgets_a_gateway_changes_no_channel(cli: Cli) -> None:
    assert "the gateway has ended" in " ".join(cli.runner.invoke(app, ["forget-gateway", "--help"]).stdout.split())


def test_outside_a_terminal_a_row_is_a_line(cli: Cli, policy: ModelRef, reward: ModelRef) -> None:
    cli.run("promote", "default", "--policy", str(policy), "--reward", str(reward), "--new")
    lines = [line.split("\t") for line in cli.run("list").stdout.splitlines()]
    assert [policy.name, reward.name] == [line[0].partition("@")[0] for line in lines[1:3]]
    assert lines[0][:2] == ["# model", "kind"] and lines[1][0] == str(policy)
    assert [str(policy), str(reward)] in [line[1:3] for line in lines]
    shown = dict(line.split("\t", 1) for line in cli.run("show", "default").stdout.splitlines())
    assert shown["policy"] == str(policy)


@pytest.mark.parametrize("width", [40, 80, 250])
def test_names_are_whole_in_a_terminal_of_any_width(
    cli: Cli, policy: ModelRef, reward: ModelRef, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    cli.run("promote", "default", "--policy", str(policy), "--reward", str(reward), "--new")
    drawn = io.StringIO()
    monkeypatch.setattr(cli_output, "Console", partial(Console, file=drawn, force_terminal=True, width=width))
    cli.run("list")
    text = drawn.getvalue()
    assert text.count(str(policy)) == text.count(str(reward)) == 2  # as a version and in the release
    if width != 80:  # there the short names of one table fit, and not those of another
        assert ("┃" in text) == (width == 250)


def test_gc_is_a_plan_until_it_is_applied(cli: Cli, registry: Registry, policy: ModelRef, reward: ModelRef) -> None:
    eager = ("gc", "--newest", "0", "--age-hours", "0", "--grace-hours", "0", "--by", "ann")
    rows = {row["model"]: row for row in cli.json(*eager)["planned"]}
    assert (rows[str(policy)]["action"], rows[str(policy)]["done"]) == ("mark", False)
    said = cli.run(*eager)
    assert said.stdout.startswith("# model\taction\tbytes\twhy\n") and str(policy) in said.stdout
    assert "0 of 2 versions would be removed (0 MB), 2 would be marked; --apply does it" in said.stderr
    assert {row["action"] for row in cli.json(*eager, "--apply")["collected"]} == {"mark"}
    assert {row["action"] for row in cli.json(*eager, "--apply")["collected"]} == {"remove"}
    assert registry.versions() == []
    assert [(row["event"], row["by"]) for row in cli.json("log", str(policy))["log"]][1:] == [
        ("mark", "ann"),
        ("remove", "ann"),
    ]


def test_gc_keeps_what_is_new_without_being_told(cli: Cli, registry: Registry, policy: ModelRef) -> None:
    assert [row["action"] for row in cli.json("gc", "--apply")["collected"]] == ["keep"]
    assert registry.versions() == [policy]


def test_the_log_is_a_table_the_newest_last(cli: Cli, policy: ModelRef, reward: ModelRef) -> None:
    pair = ("--policy", str(policy), "--reward", str(reward))
    release = cli.json("promote", "default", *pair, "--by", "ann", "--new")["release"]
    assert [row["what"] for row in cli.json("log", "--last", "2")["log"]] == [str(reward), "default"]
    lines = cli.run("log").stdout.splitlines()
    assert lines[0] == "# at\tevent\tby\twhat\tfrom\tto\twhy"
    assert lines[-1].split("\t")[1:] == ["promote", "ann", "default", "", release, ""]
    assert cli.json("log", "absent") == {"log": []}


def test_an_adapter_on_a_base(cli: Cli, tmp_path: Path) -> None:
    base = publish_base(Registry(cli.root), tmp_path / "base")
    options = ("--name", "pol", "--kind", "policy", "--step", "8", "--licence", "MIT")
    publish = ("publish", str(write_adapter(tmp_path / "adapter")), *options, "--adapter-of")
    model = cli.json(*publish, str(base))["model"]
    assert cli.json("show", model)["adapter"]["base"] == str(base)
    assert cli.json("verify", model)["verified"][0]["model"] == model
    assert {one["model"]: one["adapter_of"] for one in cli.json("list")["versions"]} == {
        model: str(base),
        str(base): None,
    }
    assert cli.json("log", model)["log"][-1]["why"] == f"adapter of {base}"
    assert cli.error(*publish, "base@s7-000000000000")["code"] == "not_found"
    assert cli.error(*publish, model)["param"] == "adapter_of"
    assert cli.error("publish", "hf://a/b", *options, "--adapter-of", str(base))["param"] == "adapter_of"
