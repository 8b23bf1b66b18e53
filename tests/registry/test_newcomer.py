"""What somebody new to `acemath registry` does by chance, and what it is told."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from registry.adapters.tiny import publish_base, write_adapter
from registry.keys import write_key
from registry.test_cli import Cli
from registry.tiny import METADATA, write_checkpoint

from acemath_registry import InvalidRequest, ModelRef, PublishMetadata, Registry
from acemath_registry.cli import app
from acemath_registry.layout import Layout

OPTIONS = ("--name", "pol", "--kind", "policy", "--step", "7", "--licence", "Apache-2.0")
FORGED = "all is well\n2026-11-22T00:00:00+00:00\trollback\teve"


@pytest.fixture
def cli(registry: Registry) -> Cli:
    return Cli(registry.root)


@pytest.fixture
def pair(policy: ModelRef, reward: ModelRef) -> tuple[str, ...]:
    return ("--policy", str(policy), "--reward", str(reward))


def test_a_channel_has_no_name_of_a_release(cli: Cli, registry: Registry, pair: tuple[str, ...]) -> None:
    error = cli.error("promote", "r-0123456789ab", *pair, "--new")
    assert "names a release" in error["message"] and registry.channel_names() == registry.release_ids() == []


def test_a_channel_that_has_one_already_is_listed_as_a_channel(
    cli: Cli, registry: Registry, pair: tuple[str, ...]
) -> None:
    release = cli.json("promote", "default", *pair, "--new")["release"]
    channels = Layout(registry.root).channels
    (channels / f"{release}.json").write_bytes((channels / "default.json").read_bytes())
    row = next(one for one in cli.json("list")["channels"] if one["channel"] == release)
    assert (row["release"], row["generation"]) == (release, 1)
    assert cli.run("list").exit_code == 0


@pytest.mark.parametrize("text", [FORGED, "", "x" * 201, "bell\a"])
def test_who_and_why_are_one_printable_line(
    cli: Cli, registry: Registry, pair: tuple[str, ...], make_checkpoint: Callable[..., Path], text: str
) -> None:
    assert cli.error("publish", str(make_checkpoint(mark="x")), *OPTIONS, "--by", text)["param"] == "by"
    for reason in (("--override-gates", "--reason"), ("--reason",)):
        assert cli.error("promote", "default", *pair, "--new", *reason, text)["param"] == "reason"
    cli.json("promote", "default", *pair, "--new")
    assert cli.error("canary", "default", "--stop", "--reason", text)["param"] == "reason"
    assert cli.error("rollback", "default", "--reason", text)["param"] == "reason"
    assert cli.error("gc", "--by", text)["param"] == "by"
    assert cli.error("forget-gateway", "g1", "--by", text)["param"] == "by"
    with pytest.raises(InvalidRequest, match="by must be"):
        registry.publish(make_checkpoint(mark="y"), name="pol", kind="policy", metadata=METADATA, by=text)


def test_what_an_older_writer_let_through_stays_on_its_line(
    cli: Cli, registry: Registry, pair: tuple[str, ...]
) -> None:
    cli.json("promote", "default", *pair, "--new")
    log = Layout(registry.root).audit
    last = json.loads(Path(log).read_text().splitlines()[-1])
    with Path(log).open("a") as file:
        file.write(json.dumps(last | {"why": FORGED + "\x1b[31m"}) + "\n")
    line = cli.run("log").stdout.splitlines()[-1]
    assert "all is well\\n2026" in line and "\\x1b[31m" in line and len(line.split("\t")) == 7
    assert "\\n" in cli.run("show", "a\nb").stderr


def test_an_unset_variable_is_no_place(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="is empty"):
        Registry("")
    result = cli.runner.invoke(app, ["list", "--root", ""])
    assert result.exit_code == 1 and "is empty" in result.stderr
    assert cli.error("publish", "", *OPTIONS)["param"] == "source"


def test_a_registry_that_is_made_is_named_whole(
    tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(make_checkpoint())
    made = [Cli(Path("here")).run("publish", source, *OPTIONS).stderr for _ in range(2)]
    assert [f"made a new registry at {tmp_path / 'here'}" in said for said in made] == [True, False]


@pytest.mark.parametrize(("task", "refused"), [("SEQ_CLS", True), ("CAUSAL_LM", False), (None, False)])
def test_an_adapter_of_another_task_is_refused(
    registry: Registry, cli: Cli, tmp_path: Path, task: str | None, refused: bool
) -> None:
    base = publish_base(registry, tmp_path / "base")
    source = write_adapter(tmp_path / "adapter", lambda config, _: config.update(task_type=task))
    result = cli.run("publish", str(source), *OPTIONS, "--adapter-of", str(base), "--json")
    assert (result.exit_code == 1) is refused
    if refused:
        assert "task_type is 'SEQ_CLS'" in result.stderr and "wrong_kind" in result.stderr


def test_an_adapter_of_another_base_is_noticed(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = publish_base(registry, tmp_path / "base")
    for number, name in enumerate(("acme/base", "acme/other")):
        caplog.clear()
        source = write_adapter(
            tmp_path / f"adapter{number}", lambda config, _, name=name: config.update(base_model_name_or_path=name)
        )
        registry.publish(source, name="pol", kind="policy", metadata=METADATA, adapter_of=base)
        assert ("was trained on 'acme/other'" in caplog.text) is (name == "acme/other")


def test_an_adapter_needs_its_base(cli: Cli, tmp_path: Path) -> None:
    error = cli.error("publish", str(write_adapter(tmp_path / "adapter")), *OPTIONS)
    assert error["message"].startswith("this is a PEFT adapter: give --adapter-of NAME@VERSION")


def test_gc_shows_what_killed_publishers_left(cli: Cli, registry: Registry, policy: ModelRef) -> None:
    left = registry.root / "staging" / "0123"
    (left / "version").mkdir(parents=True)
    (left / "version" / "model.safetensors").write_bytes(bytes(100))
    [row] = cli.json("gc")["left"]
    assert (row["path"], row["bytes"]) == (str(left), 100)
    assert row["until"].startswith(time.strftime("%Y-%m-%dT%H", time.gmtime(left.stat().st_mtime + 24 * 3600)))
    assert str(left) in cli.run("gc").stdout
    os.utime(left, (0, 0))
    assert cli.json("gc", "--apply")["left"] == [] and "# path" not in cli.run("gc").stdout


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_permission_denied_names_the_file(cli: Cli, make_checkpoint: Callable[..., Path]) -> None:
    source = make_checkpoint()
    (source / "tokenizer.json").chmod(0)
    assert f"{source / 'tokenizer.json'} (in the source)" in cli.error("publish", str(source), *OPTIONS)["message"]


def test_an_error_of_the_disk_names_the_file(
    registry: Registry, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    source = make_checkpoint()

    def refuse(path: Path, *rest: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("acemath_registry.publish.copy_file", refuse)
    message = cli.error("publish", str(source), *OPTIONS)["message"]
    assert f"Permission denied: {source}/" in message and "(in the source)" in message
    monkeypatch.undo()
    monkeypatch.setattr("acemath_registry.stores.staging.make_directory", refuse)
    message = cli.error("publish", str(source), *OPTIONS)["message"]
    assert f"Permission denied: {registry.root}/staging/" in message


def test_verify_says_which_half_is_damaged_and_looks_at_both(
    cli: Cli, registry: Registry, policy: ModelRef, reward: ModelRef, pair: tuple[str, ...]
) -> None:
    cli.json("promote", "default", *pair, "--new")
    with (registry.path(reward) / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x81\x3f\x81\x3f")
    message = cli.error("verify", "default")["message"]
    assert f"{reward}: model.safetensors" in message and str(policy) not in message
    (registry.path(policy) / "config.json").unlink()
    error = cli.error("verify", "default")
    assert error["message"].startswith(f"{policy}: config.json") and f"; {reward}: model" in error["message"]
    assert error["reason"] == "file_missing"


def test_a_copy_that_is_not_there_is_said_to_be(cli: Cli, policy: ModelRef) -> None:
    error = cli.error("verify", str(policy), "--directory", "nope")
    assert error["param"] == "directory" and "there is no directory nope" in error["message"]


def test_metadata_is_told_whole(cli: Cli, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    name, source = ("--name", "pol", "--kind", "policy"), str(make_checkpoint())
    message = cli.error("publish", source, *name)["message"]
    assert message == "step and licence are missing; give --step and --licence, or put them into the --metadata file"
    assert cli.error("publish", "nowhere", *name)["param"] == "source"
    said = tmp_path / "metadata.json"
    for document, part in (
        ({"step": 1, "lisence": "MIT"}, "'lisence'; known are step, licence, parent"),
        ({"step": True, "licence": "MIT"}, "step: "),
        ({"step": "7", "licence": "MIT"}, "step: "),
        ({"step": 1}, "licence is missing; give --licence, or put it into"),
    ):
        said.write_text(json.dumps(document))
        assert part in cli.error("publish", source, *name, "--metadata", str(said))["message"]
    assert PublishMetadata(step=1, licence="MIT").step == 1


def test_a_reason_is_kept_where_no_gate_asked_for_it(
    cli: Cli, pair: tuple[str, ...], make_checkpoint: Callable[..., Path], reward: ModelRef
) -> None:
    first = cli.json("promote", "default", *pair, "--new", "--reason", "the first")
    second = cli.json("publish", str(make_checkpoint(mark="2")), *OPTIONS)["model"]
    after = ("--policy", second, "--reward", str(reward))
    moved = cli.json("promote", "default", *after, "--override-gates", "--reason", "in a hurry")
    assert (first["from"], first["to"]) == (None, first["release"])
    assert (moved["from"], moved["to"]) == (first["release"], moved["release"])
    cli.json("rollback", "default", "--reason", "too slow")
    cli.json("canary", "default", moved["release"], "--share", "0.1", "--reason", "once more")
    cli.json("promote", "default", "--again", "--reason", "a new disk")
    whys = [entry["why"] for entry in cli.json("log", "default")["log"]]
    assert whys == ["the first", "in a hurry", "too slow", "a share of 0.1; once more", "a new disk"]
    assert f"from\t{first['release']}" in cli.run("promote", "default", *after).stdout


def test_another_key_replaces_no_signature_in_passing(cli: Cli, tmp_path: Path) -> None:
    source = str(write_checkpoint(tmp_path / "export"))
    ours, theirs = (str(write_key(tmp_path / f"{name}.key")) for name in ("ours", "theirs"))
    model = cli.json("publish", source, *OPTIONS, "--sign-key", ours)["model"]
    signature = Registry(cli.root).path(ModelRef.parse(model)) / "model.sig"
    before = signature.read_bytes()
    message = cli.error("publish", source, *OPTIONS, "--sign-key", theirs)["message"]
    assert f"acemath registry sign {model} --sign-key FILE" in message and signature.read_bytes() == before
    assert cli.json("publish", source, *OPTIONS, "--sign-key", ours)["model"] == model
    key = json.loads(before)["key"]
    result = cli.run("sign", model, "--sign-key", theirs)
    assert f"{model}: replaces the signature by key {key}" in result.stderr
    assert f"replaces the signature by key {key}" in cli.json("log", model)["log"][-1]["why"]
    assert "replaces" not in cli.run("sign", model, "--sign-key", theirs).stderr
