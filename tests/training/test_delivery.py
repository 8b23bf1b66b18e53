"""The end of a job: what it made is a version with a canary, and the channel's next release where that is wished."""

import json
import pwd
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from acemath_core.errors import ServiceError
from acemath_registry import EvaluationGate, Gates, ModelKind, ModelRef, Registry, Release
from acemath_training.cli import train
from acemath_training.delivery import Delivered, Delivery, check
from acemath_training.delivery import deliver as delivered
from acemath_training.embedded import canary
from acemath_training.errors import PublishError
from acemath_training.jobs import lora
from acemath_training.jobs.config import Lora
from acemath_training.jobs.run_record import RunRecord
from acemath_training.left_alone import Standing

LAYER = "model.layers.0.self_attn.q_proj"
RECORD = RunRecord(
    config={"stage": "test"},
    config_sha256="c" * 64,
    steps=20,
    cursor=80,
    figures={"train_loss_last": 1.5},
    inputs={"mixture": "d" * 64},
)


def finished(output: Path, seed: int, *, head: bool) -> Path:
    """What a job with LoRA leaves behind."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {f"{LAYER}.lora_A": (2, 32), f"{LAYER}.lora_B": (32, 2)} | ({"score.weight": (1, 32)} if head else {})
    values = {name: torch.randn(shape, generator=draw).to(torch.bfloat16) for name, shape in shapes.items()}
    lora.save(output, values, {"r": 2, "alpha": 4})
    if not head:
        lora.save_for_peft(output / lora.PEFT, values, Lora(r=2, alpha=4))
    RECORD.write(output)
    return output


def deliver(job: str, base: Path, output: Path, wish: Delivery, began: Standing | None = None) -> Delivered:
    """A job that took no time, unless told when it began."""
    return delivered(job, base, output, wish, began or check(wish, job, base, lora=True))


@pytest.fixture
def wish(tmp_path: Path) -> Delivery:
    return Delivery("job", str(tmp_path / "registry"), licence="Apache-2.0", by="a job")


@pytest.fixture
def channel(tiny_base: Path, tmp_path: Path, wish: Delivery) -> Registry:
    """A registry whose channel `default` has a pair."""
    registry = Registry(wish.root)
    policy = deliver("sft", tiny_base, finished(tmp_path / "p0", 1, head=False), replace(wish, name="policy"))
    reward = deliver("reward_model", tiny_base, finished(tmp_path / "r0", 2, head=True), replace(wish, name="reward"))
    release = registry.create_release(policy.model, reward.model)
    registry.promote("default", release.id, expected_generation=0, by="setup")
    return registry


@pytest.mark.parametrize("job", ["sft", "reward_model"])
def test_a_result_takes_its_place_beside_the_other_model(
    job: str, channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    before = channel.release(channel.channel("default").release)
    output = finished(tmp_path / "out", 3, head=job == "reward_model")
    wish = replace(wish, channel="default")
    done = deliver(job, tiny_base, output, wish)
    after = channel.release(channel.channel("default").release)
    assert (channel.channel("default").generation, channel.channel("default").by) == (done.generation, "a job")
    assert channel.channel("default").release == done.release and done.generation == 2
    ours, others = (after.policy, after.reward) if job == "sft" else (after.reward, after.policy)
    assert ours.ref == done.model
    assert others == (before.reward if job == "sft" else before.policy)


def test_a_version_says_where_it_comes_from_and_carries_the_canary_of_its_own_weights(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    done = deliver("sft", tiny_base, finished(tmp_path / "out", 4, head=False), wish)
    manifest = channel.verify(done.model)
    assert (manifest.step, manifest.kind, manifest.licence) == (20, ModelKind.POLICY, "Apache-2.0")
    assert manifest.training["config_sha256"] == "c" * 64 and manifest.metrics == {"train_loss_last": 1.5}
    assert manifest.canary == canary.policy(channel.path(done.model))
    assert done == Delivered(done.model)  # nothing was to be promoted
    model = AutoModelForCausalLM.from_pretrained(str(channel.path(done.model)))
    base = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    weights = [dict(one.named_parameters())[f"{LAYER}.weight"] for one in (model, base)]
    assert not torch.equal(*weights)


def test_the_same_result_again_changes_nothing(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    output, wish = finished(tmp_path / "out", 5, head=False), replace(wish, channel="default")
    first = deliver("sft", tiny_base, output, wish)
    assert deliver("sft", tiny_base, output, wish) == first


def test_a_base_of_the_registry_is_the_parent_and_gives_its_licence(
    channel: Registry, tmp_path: Path, wish: Delivery
) -> None:
    parent = channel.release(channel.channel("default").release).policy.ref
    done = deliver("sft", channel.path(parent), finished(tmp_path / "out", 6, head=False), replace(wish, licence=None))
    manifest = channel.manifest(done.model)
    assert (manifest.parent, manifest.licence) == (str(parent), "Apache-2.0")


def test_a_full_weight_result_is_published_as_it_is(tiny_base: Path, tmp_path: Path, wish: Delivery) -> None:
    output = tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(str(tiny_base)).save_pretrained(str(output / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (output / "model" / name).write_bytes((tiny_base / name).read_bytes())
    RECORD.write(output)
    done = deliver("sft", tiny_base, output, wish)
    stored = Registry(wish.root).path(done.model) / "model.safetensors"
    assert stored.read_bytes() == (output / "model" / "model.safetensors").read_bytes()


def test_what_a_gate_refuses_stays_published_and_the_channel_where_it_was(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    asked = EvaluationGate(set="gsm8k", metric="rm@8", margin=0.01, min_problems=300)
    channel.set_gates("default", Gates(evaluations=(asked,)), by="somebody")
    with pytest.raises(PublishError, match=r"is published and stays so.*acemath registry promote default --release r-"):
        deliver("sft", tiny_base, finished(tmp_path / "out", 7, head=False), replace(wish, channel="default"))
    assert channel.channel("default").generation == 1
    assert [ref.name for ref in channel.versions()].count("job") == 1


@pytest.mark.parametrize("what", ["rolled back", "another policy", "a rollback to the same policy"])
def test_what_was_changed_while_the_job_ran_is_left_alone(
    what: str, channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    wish, pair = replace(wish, channel="default"), channel.release(channel.channel("default").release)
    began = check(wish, "sft", tiny_base)
    other = deliver("sft", tiny_base, finished(tmp_path / "other", 8, head=False), replace(wish, channel=None))
    theirs = channel.create_release(other.model, pair.reward.ref)
    channel.promote("default", theirs.id, expected_generation=1, by="somebody")
    if what != "another policy":
        channel.rollback("default", by="the watch")
    before = channel.channel("default")
    with pytest.raises(PublishError, match=r"(while the job ran).*acemath registry promote"):
        deliver("sft", tiny_base, finished(tmp_path / "out", 9, head=False), wish, began)
    assert channel.channel("default") == before


def test_a_result_that_was_taken_back_is_not_put_there_again_by_the_same_command(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    output, wish = finished(tmp_path / "out", 5, head=False), replace(wish, channel="default")
    deliver("sft", tiny_base, output, wish)
    channel.rollback("default", by="the watch")
    before = channel.channel("default")
    with pytest.raises(PublishError, match="was there before"):
        deliver("sft", tiny_base, output, wish)
    assert channel.channel("default") == before


def test_the_current_release_may_have_been_tried_again_meanwhile(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    wish = replace(wish, channel="default")
    began, current = check(wish, "sft", tiny_base), channel.channel("default").release
    channel.promote("default", current, expected_generation=1, by="somebody", again=True)
    assert deliver("sft", tiny_base, finished(tmp_path / "out", 9, head=False), wish, began).generation == 3


def reject(registry: Registry, ref: ModelRef, **record: object) -> None:
    slot = {"version": str(ref), "state": "rejected", "reason": "canary: off by 3"}
    registry.write_status("policy", "p0", {"slots": [slot], "channel": "default", "at": time.time()} | record)


def test_a_result_is_not_put_beside_a_model_that_replicas_rejected(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    """The channel names (bad, good), and gateways serve what was there before."""
    first = channel.release(channel.channel("default").release)
    bad = deliver("sft", tiny_base, finished(tmp_path / "bad", 8, head=False), replace(wish, name="policy"))
    channel.promote("default", channel.create_release(bad.model, first.reward.ref).id, expected_generation=1, by="ann")
    reject(channel, bad.model)
    before, output = channel.channel("default"), finished(tmp_path / "rm", 9, head=True)
    wish = replace(wish, channel="default")
    with pytest.raises(PublishError) as caught:
        deliver("reward_model", tiny_base, output, wish)
    said = str(caught.value)
    assert "is published and stays so" in said and f"policy/p0 rejected {bad.model} (canary: off by 3)" in said
    assert "--with NAME@VERSION" in said and f"(the release before has {first.policy.ref})" in said
    assert channel.channel("default") == before and "job" in {ref.name for ref in channel.versions()}
    done = deliver("reward_model", tiny_base, output, replace(wish, beside=str(first.policy.ref)))
    now = channel.release(channel.channel("default").release)
    assert (now.policy.ref, now.reward.ref) == (first.policy.ref, done.model)


@pytest.mark.parametrize("record", [{"at": 0.0}, {"channel": "candidate"}, {"slots": []}])
def test_only_what_the_channels_replicas_say_now_counts(
    record: dict[str, object], channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    reject(channel, channel.release(channel.channel("default").release).policy.ref, **record)
    done = deliver("reward_model", tiny_base, finished(tmp_path / "rm", 9, head=True), replace(wish, channel="default"))
    assert channel.channel("default").release == done.release


def test_what_mends_the_half_for_which_the_partner_was_refused_is_promoted(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    """One version at a time: a half goes as rejected when the other half of its release is bad."""
    first = channel.release(channel.channel("default").release)
    reject(channel, first.policy.ref)
    slot = {"version": str(first.reward.ref), "state": "rejected", "reason": "canary: off by 9"}
    channel.write_status("reward", "r0", {"channel": "default", "at": time.time(), "slots": [slot]})
    done = deliver("reward_model", tiny_base, finished(tmp_path / "rm", 9, head=True), replace(wish, channel="default"))
    assert channel.channel("default").release == done.release


def test_a_result_that_takes_shorter_requests_is_promoted_and_said(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "short"
    shutil.copytree(tiny_base, base)
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 512}))
    before = channel.release(channel.channel("default").release)
    done = deliver("sft", base, finished(tmp_path / "out", 3, head=False), replace(wish, channel="default"))
    assert channel.channel("default").release == done.release
    said = f"warning: {done.model} takes 512 tokens, {before.policy.ref} took 1024: longer requests become 400s"
    assert said in capsys.readouterr().err


def test_an_account_without_a_name_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert Delivery("job", "registry").by.startswith("uid ")


def test_the_other_model_may_have_been_promoted_meanwhile(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    wish = replace(wish, channel="default")
    began = check(wish, "sft", tiny_base)
    reward = deliver("reward_model", tiny_base, finished(tmp_path / "rm", 6, head=True), wish)
    done = deliver("sft", tiny_base, finished(tmp_path / "out", 7, head=False), wish, began)
    now = channel.release(channel.channel("default").release)
    assert (now.policy.ref, now.reward.ref, done.generation) == (done.model, reward.model, 3)


def test_a_base_with_a_writing_head_of_its_own_gives_a_reward_model_without_one(
    tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    base = tmp_path / "untied"
    shutil.copytree(tiny_base, base)
    config = LlamaConfig.from_pretrained(str(base), tie_word_embeddings=False)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(str(base))
    assert "lm_head.weight" in load_file(str(base / "model.safetensors"))
    done = deliver("reward_model", base, finished(tmp_path / "rm", 1, head=True), wish)
    stored = Registry(wish.root).path(done.model)
    assert "lm_head.weight" not in load_file(str(stored / "model.safetensors"))


@pytest.mark.parametrize("ends", [None, 0, [0, 2]])
def test_generation_ends_at_the_end_of_a_turn(
    ends: int | list[int] | None, tiny_base: Path, tmp_path: Path, wish: Delivery
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    file = base / "generation_config.json"
    file.unlink(missing_ok=True)
    if ends is not None:
        file.write_text(json.dumps({"eos_token_id": ends, "max_length": 99}))
    done = deliver("sft", base, finished(tmp_path / "out", 1, head=False), wish)
    stored = json.loads((Registry(wish.root).path(done.model) / "generation_config.json").read_text())
    assert stored["eos_token_id"] == {None: [2], 0: [2, 0]}.get(ends if not isinstance(ends, list) else -1, [0, 2])
    assert ends is None or stored["max_length"] == 99


def test_an_adapter_with_a_score_needs_a_base_that_writes(tiny_base: Path, tmp_path: Path, wish: Delivery) -> None:
    base = tmp_path / "scores"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(PublishError, match="is trained on a …ForCausalLM"):
        check(wish, "reward_model", base, lora=True)


def test_what_the_disk_refuses_is_said(tiny_base: Path, tmp_path: Path, wish: Delivery) -> None:
    output = finished(tmp_path / "out", 1, head=False)
    with pytest.raises(PublishError, match="same command tries again"):
        (tmp_path / "out" / "config.json").unlink()
        deliver("sft", tiny_base, output, wish)
    assert not list(output.glob(".delivery-*"))


def test_who_is_overtaken_is_told_and_undoes_nothing(
    channel: Registry, tiny_base: Path, tmp_path: Path, wish: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, pair = Registry.create_release, channel.release(channel.channel("default").release)
    other = deliver("sft", tiny_base, finished(tmp_path / "other", 8, head=False), replace(wish, name="other"))

    def overtaken(self: Registry, policy: ModelRef, reward: ModelRef) -> Release:
        theirs = made(self, other.model, pair.reward.ref)
        self.promote("default", theirs.id, expected_generation=1, by="another job")
        return made(self, policy, reward)

    monkeypatch.setattr(Registry, "create_release", overtaken)
    with pytest.raises(PublishError, match="was not pointed at"):
        deliver("sft", tiny_base, finished(tmp_path / "out", 9, head=False), replace(wish, channel="default"))
    assert (channel.channel("default").generation, channel.channel("default").by) == (2, "another job")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"channel": "nowhere"}, "does not exist"),
        ({"channel": "default", "beside": "policy"}, "name@version"),
        ({"beside": "reward@s20-000000000000"}, "--with names the other model"),
        ({"licence": None}, "give --licence"),
        ({"name": "no name"}, "--publish"),
    ],
)
def test_what_would_fail_at_the_end_fails_before_the_beginning(
    changed: dict[str, str | None], message: str, channel: Registry, tiny_base: Path, wish: Delivery
) -> None:
    with pytest.raises((PublishError, ServiceError), match=message):
        check(replace(wish, **changed), "sft", tiny_base)  # type: ignore[arg-type]


def test_two_policies_are_no_release(channel: Registry, tiny_base: Path, wish: Delivery) -> None:
    policy = channel.release(channel.channel("default").release).policy.ref
    with pytest.raises(PublishError, match="names the other kind"):
        check(replace(wish, channel="default", beside=str(policy)), "sft", tiny_base)


def test_a_job_that_did_not_end_is_not_published(tiny_base: Path, tmp_path: Path, wish: Delivery) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PublishError, match="did not end"):
        deliver("sft", tiny_base, tmp_path / "out", wish)
    assert not Registry(wish.root).exists()


@pytest.mark.parametrize("option", ["--promote", "--with", "--licence"])
def test_options_of_publishing_without_publishing_are_refused(option: str, tiny_base: Path, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("job: sft\n")
    command = ["sft", str(config), "--base", str(tiny_base), "--output", str(tmp_path / "out"), option, "x"]
    done = CliRunner().invoke(train, command)
    assert done.exit_code == 1 and "belong to --publish" in done.stderr and not (tmp_path / "out").exists()
