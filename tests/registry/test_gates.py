"""A channel's gates: what each refuses and says, that nothing goes past them, and that overriding leaves its line."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry.tiny import CANARIES, METADATA
from typer.testing import CliRunner, Result

from acemath_core.comparison import Comparison
from acemath_registry import (
    CanaryGate,
    EvaluationGate,
    GateReason,
    GateRefused,
    Gates,
    InvalidRequest,
    NotFound,
    Registry,
    Release,
    StorageError,
    VerificationError,
)
from acemath_registry.audit import AuditEvent
from acemath_registry.cli import app

G = GateReason
RM = EvaluationGate(set="sums", metric="rm@8", margin=0.02)
EVALUATED = Gates(evaluations=(RM,))


@pytest.fixture
def releases(registry: Registry, make_checkpoint: Callable[..., Path]) -> list[Release]:
    """Three releases with canaries; the first is current on `default`."""
    metadata = METADATA.model_copy(update={"canary": CANARIES["policy"]})
    rewards = METADATA.model_copy(update={"canary": CANARIES["reward"]})
    reward = registry.publish(make_checkpoint("reward"), name="rew", kind="reward", metadata=rewards)
    made = []
    for i in range(3):
        source = make_checkpoint(mark=str(i))
        policy = registry.publish(source, name="pol", kind="policy", metadata=metadata)
        made.append(registry.create_release(policy, reward))
    promote(registry, made[0])
    return made


def promote(registry: Registry, release: Release, override: str | None = None) -> int:
    return registry.promote("default", release.id, expected_generation=None, by="ann", override=override).generation


def refused(registry: Registry, release: Release) -> list[GateReason]:
    """Why promoting is refused; that asking says the same, and that nothing was changed."""
    before = registry.channel("default"), registry.log()
    asked = registry.ask_gates("default", release.id)
    with pytest.raises(GateRefused) as caught:
        promote(registry, release)
    assert caught.value.refusals == asked and caught.value.status == 409
    assert all(refusal.detail in caught.value.message for refusal in asked)
    assert (registry.channel("default"), registry.log()) == before
    return [refusal.reason for refusal in asked]


def comparison(baseline: Release, candidate: Release, **changes: Any) -> Comparison:
    """One point worse on 400 problems, give or take 0.5."""
    result = {
        "set": "sums", "metric": "rm@8", "problems": 400, "clusters": 20, "baseline": 0.5, "candidate": 0.49,
        "difference": -0.01, "low": -0.015, "high": -0.005,
    }  # fmt: skip
    sides = {
        name: {
            "release": side.id,
            "policy": str(side.policy.ref),
            "reward": str(side.reward.ref),
            "journals": {"sums": "0" * 64},
        }
        for name, side in (("baseline", baseline), ("candidate", candidate))
    }
    rest = {key: changes.pop(key) for key in ("complete",) if key in changes}
    document = {"sampling": "abc", "n": 8, "level": 0.95, "method": "bootstrap-t", "complete": True} | rest
    return Comparison.model_validate(sides | document | {"results": [result | changes]})


def test_without_gates_everything_goes(registry: Registry, releases: list[Release]) -> None:
    assert registry.gates("default") == Gates()
    assert promote(registry, releases[1]) == 2


def test_the_canary_has_to_be_there(registry: Registry, releases: list[Release], make_checkpoint: Any) -> None:
    registry.set_gates("default", Gates(canary=CanaryGate.DECLARED), by="ann")
    bare = registry.publish(make_checkpoint(mark="bare"), name="pol", kind="policy", metadata=METADATA)
    release = registry.create_release(bare, releases[0].reward.ref)
    assert refused(registry, release) == [G.CANARY_MISSING]
    (refusal,) = registry.ask_gates("default", release.id)
    said = "publish it again with another --step and a canary (acemath train canary computes one of most models)"
    assert refusal.detail == f"{bare} was published without a canary; {said}"
    assert promote(registry, releases[1]) == 2


def test_what_a_refusal_for_want_of_a_canary_says_helps(
    registry: Registry, releases: list[Release], make_checkpoint: Any
) -> None:
    """The same content and step keep the manifest that they have."""
    registry.set_gates("default", Gates(canary=CanaryGate.DECLARED), by="ann")
    source = make_checkpoint(mark="bare")
    bare = registry.publish(source, name="pol", kind="policy", metadata=METADATA)
    better = METADATA.model_copy(update={"canary": CANARIES["policy"]})
    assert registry.publish(source, name="pol", kind="policy", metadata=better) == bare
    assert refused(registry, registry.create_release(bare, releases[0].reward.ref)) == [G.CANARY_MISSING]
    stepped = better.model_copy(update={"step": METADATA.step + 1})
    other = registry.publish(source, name="pol", kind="policy", metadata=stepped)
    assert promote(registry, registry.create_release(other, releases[0].reward.ref)) == 2


def test_the_canary_has_to_be_reproduced(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", Gates(canary=CanaryGate.REPRODUCED), by="ann")
    release = releases[1]
    versions = {"policy": str(release.policy.ref), "reward": str(release.reward.ref)}
    assert refused(registry, release) == [G.CANARY_NOT_REPRODUCED, G.CANARY_NOT_REPRODUCED]
    for service, state in (("policy", "ready"), ("reward", "warming")):
        registry.write_status(service, "spare", {"slots": [{"version": versions[service], "state": state}]})
    assert refused(registry, release) == [G.CANARY_NOT_REPRODUCED]
    registry.write_status("reward", "spare", {"slots": [{"version": versions["reward"], "state": "active"}]})
    rejected = {"version": versions["policy"], "state": "rejected", "reason": "canary: off by 3"}
    registry.write_status("policy", "other", {"slots": [rejected]})
    assert refused(registry, release) == [G.VERSION_REJECTED]
    assert "policy/other rejected" in str(registry.ask_gates("default", release.id)[0])
    registry.remove_status("policy", "other")
    assert promote(registry, release) == 2


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"low": -0.0201}, [G.EVALUATION_WORSE]),
        ({"problems": 99}, [G.EVALUATION_TOO_SMALL]),
        ({"metric": "rm@4"}, [G.EVALUATION_MISSING]),
        ({"complete": False}, [G.EVALUATION_INCOMPLETE]),
        ({"complete": False, "low": -0.3}, [G.EVALUATION_INCOMPLETE, G.EVALUATION_WORSE]),
    ],
)
def test_the_evaluation_decides(
    changes: dict[str, Any], reasons: list[GateReason], registry: Registry, releases: list[Release]
) -> None:
    registry.set_gates("default", EVALUATED, by="ann")
    assert refused(registry, releases[1]) == [G.EVALUATION_MISSING]
    registry.attach_evaluation(comparison(releases[0], releases[1], **changes), by="ann")
    if reasons:
        assert refused(registry, releases[1]) == reasons
    else:
        assert promote(registry, releases[1]) == 2


def test_a_refusal_has_the_figures_and_what_to_do(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", EVALUATED, by="ann")
    registry.attach_evaluation(comparison(releases[0], releases[1], low=-0.06), by="ann")
    (refusal,) = registry.ask_gates("default", releases[1].id)
    assert refusal.detail == (
        "rm@8 on sums is 49.0 against 50.0, a difference of -1.0 points with a 95% interval from -6.0 to -0.5, and "
        "-2.0 is allowed (400 problems); train a better version"
    )
    registry.attach_evaluation(comparison(releases[0], releases[1], low=-0.06, high=0.04), by="ann")
    assert registry.ask_gates("default", releases[1].id)[0].detail.endswith("evaluate on more problems")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(low=st.floats(-1, -0.01), margin=st.floats(0, 0.999))
def test_what_passes_is_not_worse_by_more_than_the_margin(
    low: float, margin: float, registry: Registry, releases: list[Release]
) -> None:
    registry.set_gates("default", Gates(evaluations=(RM.model_copy(update={"margin": margin}),)), by="ann")
    registry.attach_evaluation(comparison(releases[0], releases[1], low=low), by="ann")
    assert bool(registry.ask_gates("default", releases[1].id)) == (low < -margin)


def test_a_comparison_counts_against_the_current_release_only(registry: Registry, releases: list[Release]) -> None:
    registry.attach_evaluation(comparison(releases[0], releases[1]), by="ann")
    promote(registry, releases[2])
    registry.set_gates("default", EVALUATED, by="ann")
    assert refused(registry, releases[1]) == [G.EVALUATION_MISSING]
    with pytest.raises(GateRefused):  # the other way round is another question
        registry.promote("default", releases[0].id, expected_generation=None, by="ann")


def test_it_is_compared_with_what_is_served_not_with_what_replicas_rejected(
    registry: Registry, releases: list[Release]
) -> None:
    """The first serves, the second was promoted and never did; to the first itself there is nothing to be compared."""
    served = {"channel": "default", "generation": 1, "release": releases[0].id, "leases": {}, "at": time.time()}
    registry.write_status("gateway", "g1", served)
    promote(registry, releases[1])
    registry.set_gates("default", EVALUATED, by="ann")
    registry.attach_evaluation(comparison(releases[1], releases[2]), by="ann")
    assert refused(registry, releases[2]) == [G.EVALUATION_MISSING]
    registry.attach_evaluation(comparison(releases[0], releases[2]), by="ann")
    assert registry.ask_gates("default", releases[2].id) == registry.ask_gates("default", releases[0].id) == ()
    promote(registry, releases[0])


def test_first_same_and_back_are_not_compared(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("new", EVALUATED, by="ann")
    assert registry.ask_gates("new", releases[0].id) == ()
    assert registry.promote("new", releases[0].id, expected_generation=0, by="ann").generation == 1
    promote(registry, releases[1])
    registry.set_gates("default", EVALUATED, by="ann")
    assert registry.ask_gates("default", releases[1].id) == () and promote(registry, releases[1]) == 2
    assert registry.rollback("default", by="ann").release == releases[0].id


def test_overriding_leaves_its_line_first_and_only_where_a_gate_refuses(
    registry: Registry, releases: list[Release]
) -> None:
    registry.set_gates("default", EVALUATED, by="ann")
    assert promote(registry, releases[1], override="the old one leaks") == 2
    *_, override, promoted = registry.log()
    assert (override.event, promoted.event) == (AuditEvent.OVERRIDE_GATES, AuditEvent.PROMOTE)
    assert (override.by, override.what, override.after) == ("ann", "default", releases[1].id)
    assert override.why == "the old one leaks; refused by evaluation_missing"
    registry.attach_evaluation(comparison(releases[1], releases[2]), by="ann")
    promote(registry, releases[2], override="not needed")
    assert [entry.event for entry in registry.log()][-2:] == [AuditEvent.ATTACH_EVALUATION, AuditEvent.PROMOTE]
    for reason in ("", "  ", "x" * 201):
        with pytest.raises(InvalidRequest, match="reason must be"):
            promote(registry, releases[0], override=reason)


def test_without_a_line_in_the_log_nothing_is_declared_attached_or_overridden(
    registry: Registry, releases: list[Release]
) -> None:
    registry.set_gates("default", EVALUATED, by="ann")
    log = registry.root / "audit.jsonl"
    log.unlink()
    log.mkdir()
    for change in (
        lambda: promote(registry, releases[1], override="quick"),
        lambda: registry.set_gates("default", Gates(), by="ann"),
        lambda: registry.attach_evaluation(comparison(releases[0], releases[1]), by="ann"),
    ):
        with pytest.raises(StorageError, match="nothing was changed"):
            change()
    assert registry.gates("default") == EVALUATED and registry.channel("default").generation == 1
    assert [one.reason for one in registry.ask_gates("default", releases[1].id)] == [G.EVALUATION_MISSING]


@pytest.mark.parametrize("text", ["{", "[]", '{"canary": "maybe"}', '{"schema_version": 2}', '{"shadow": {}}'])
def test_gates_that_cannot_be_read_refuse(text: str, registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", Gates(), by="ann")
    (registry.root / "gates" / "default.json").write_text(text)
    with pytest.raises(VerificationError, match="gates_malformed"):
        promote(registry, releases[1], override="quick")
    registry.set_gates("default", Gates(), by="ann")
    assert promote(registry, releases[1]) == 2


def test_an_evaluation_is_bound_to_its_releases(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", EVALUATED, by="ann")
    found = comparison(releases[0], releases[1])
    other = found.model_copy(update={"candidate": found.candidate.model_copy(update={"policy": "pol@s1-0"})})
    with pytest.raises(InvalidRequest, match="a gateway that reads this registry"):
        registry.attach_evaluation(other, by="ann")
    absent = found.model_copy(update={"candidate": found.candidate.model_copy(update={"release": "r-0123456789ab"})})
    with pytest.raises(NotFound):
        registry.attach_evaluation(absent, by="ann")
    attached = registry.attach_evaluation(found, by="ann")
    assert attached.comparison_sha256 in str(registry.log()[-1].why)
    path = registry.root / "evaluations" / releases[1].id / f"{releases[0].id}.json"
    written = path.read_text()
    path.write_text(written.replace("-0.015", "-0.012"))
    assert refused(registry, releases[1]) == [G.EVALUATION_UNREADABLE]
    moved = path.parent.with_name(releases[2].id)
    path.parent.rename(moved)
    (moved / path.name).write_text(written)
    assert refused(registry, releases[2]) == [G.EVALUATION_UNREADABLE]


def run(registry: Registry, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--root", str(registry.root)])


def test_the_commands(registry: Registry, releases: list[Release], tmp_path: Path) -> None:
    declared = run(
        registry, "gates", "set", "default", "--canary", "declared", "--evaluation", "sums:rm@8:2", "--by", "ann"
    )
    assert declared.exit_code == 0, declared.output
    assert "rm@8 on sums\tat most 2 points worse, of 100 problems" in declared.stdout
    shown = json.loads(run(registry, "gates", "show", "default", "--json").stdout)
    assert Gates.model_validate({key: shown[key] for key in Gates.model_fields}) == Gates(
        canary=CanaryGate.DECLARED, evaluations=(RM,)
    )
    asked = run(registry, "gates", "check", "default", "--release", releases[1].id)
    assert asked.exit_code == 1 and asked.stdout.splitlines()[1].startswith("evaluation_missing\tno comparison of")
    wanted = ("promote", "default", "--release", releases[1].id)
    error = json.loads(run(registry, *wanted, "--json").stderr)["error"]
    assert (error["code"], error["refusals"][0]["reason"]) == ("gate_refused", "evaluation_missing")
    file = tmp_path / "comparison.json"
    file.write_text(comparison(releases[0], releases[1]).model_dump_json())
    attached = json.loads(run(registry, "gates", "attach", str(file), "--by", "ann", "--json").stdout)
    assert (attached["candidate"], attached["baseline"]) == (releases[1].id, releases[0].id)
    assert run(registry, "gates", "check", "default", "--release", releases[1].id).exit_code == 0
    assert run(registry, *wanted).exit_code == 0
    again = ("promote", "default", "--release", releases[2].id)
    assert run(registry, *again).exit_code == 1
    assert "needs --reason" in run(registry, *again, "--override-gates").stderr
    assert run(registry, *again, "--override-gates", "--reason", "an outage").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        (("set", "default", "--evaluation", "rm@8:2"), "evaluation"),
        (("set", "default", "--evaluation", "sums:rm@8:100"), "evaluation"),
        (("set", "default", "--evaluation", "sums:rm@8:2", "--evaluation", "sums:rm@8:1"), "evaluation"),
        (("attach", "absent.json"), "file"),
        (("attach", "empty.json"), "file"),
        (("set", "../default"), None),
    ],
)
def test_the_commands_refuse_in_one_sentence(
    arguments: tuple[str, ...], param: str | None, registry: Registry, releases: list[Release], tmp_path: Path
) -> None:
    (tmp_path / "empty.json").write_text("{}")
    given = [str(tmp_path / one) if one.endswith(".json") else one for one in arguments]
    refusal = run(registry, "gates", *given, "--json")
    assert refusal.exit_code == 1
    error = json.loads(refusal.stderr)["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)
