"""The current release is tried once more: a new generation and nothing else. What gates, shares and the watch do."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.test_gates import EVALUATED, promote, refused, releases, run
from registry.watched import BANDS

from acemath_registry import CanaryGate, GateReason, GateRefused, Gates, NotFound, Registry, Release
from acemath_registry.audit import AuditEvent
from acemath_registry.watch import Verdict, Watcher
from doubles.figures import ScriptedFigures

__all__ = ["releases"]  # the fixture: three releases with canaries, the first current on `default`
DECLARED = Gates(canary=CanaryGate.DECLARED)


def again(registry: Registry, release: Release) -> Any:
    return registry.promote("default", release.id, expected_generation=None, by="bob", again=True)


def reject(registry: Registry, release: Release, instance: str = "0", **record: Any) -> None:
    slot = {"version": str(release.policy.ref), "state": "rejected", "reason": "no space left on the device"}
    registry.write_status("policy", instance, {"generation": 1, "slots": [slot], "at": time.time()} | record)


def test_the_same_release_anew_changes_the_generation_and_no_way_back(
    registry: Registry, releases: list[Release]
) -> None:
    promote(registry, releases[1])
    found = again(registry, releases[1])
    assert (found.release, found.generation, found.previous) == (releases[1].id, 3, releases[0].id)
    line = registry.log()[-1]
    assert (line.event, line.by, line.before, line.after, line.generation) == (
        AuditEvent.PROMOTE_AGAIN, "bob", releases[1].id, releases[1].id, 3,
    )  # fmt: skip
    assert registry.rollback("default", by="ann").release == releases[0].id


def test_a_release_that_is_not_current_is_promoted_as_always(registry: Registry, releases: list[Release]) -> None:
    found = again(registry, releases[1])
    assert (found.release, found.generation, found.previous) == (releases[1].id, 2, releases[0].id)
    assert registry.log()[-1].event is AuditEvent.PROMOTE
    first = registry.promote("new", releases[0].id, expected_generation=0, by="ann", again=True)
    assert (first.generation, first.previous) == (1, None)


def test_a_share_beside_it_stays(registry: Registry, releases: list[Release]) -> None:
    before = registry.canary("default", releases[1].id, 0.1, by="ann")
    found = again(registry, releases[0])
    assert (found.generation, found.canary) == (3, before.canary)
    assert registry.log()[-1].why is None, "no share ends"


def test_gates_let_it_pass_a_past_rejection_and_nothing_else(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", DECLARED, by="ann")
    reject(registry, releases[1])
    assert refused(registry, releases[1]) == [GateReason.VERSION_REJECTED]
    assert "--again" in str(registry.ask_gates("default", releases[1].id)[0])
    assert again(registry, releases[1]).generation == 2
    reject(registry, releases[1], generation=2)
    registry.set_gates("default", DECLARED.model_copy(update={"evaluations": EVALUATED.evaluations}), by="ann")
    assert again(registry, releases[1]).generation == 3, "what is current was let in, and is compared with nothing"
    reject(registry, releases[2])
    with pytest.raises(GateRefused) as caught:
        again(registry, releases[2])
    assert [one.reason for one in caught.value.refusals] == [GateReason.EVALUATION_MISSING]


def test_a_spare_that_follows_another_channel_has_to_try_again_there(
    registry: Registry, releases: list[Release]
) -> None:
    registry.set_gates("default", DECLARED, by="ann")
    reject(registry, releases[1], "ours", channel="default")
    reject(registry, releases[1], "spare", channel="candidate")
    with pytest.raises(GateRefused, match=r"policy/spare .*promote it with --again on channel candidate") as caught:
        again(registry, releases[1])
    assert len(caught.value.refusals) == 1, "our own is about to try again"
    reject(registry, releases[1], "spare", channel="candidate", slots=[])
    assert again(registry, releases[1]).generation == 2
    assert registry.log()[-1].why == "again: what replicas rejected before was let pass"


def share(registry: Registry, release: Release, again: bool = False) -> Any:
    return registry.canary("default", release.id, 0.1, by="bob", again=again)


def test_a_share_is_told_of_shares_and_may_begin_again(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", DECLARED, by="ann")
    reject(registry, releases[1], "ours", channel="default")
    reject(registry, releases[1], "spare", channel="candidate")
    with pytest.raises(GateRefused) as caught:
        share(registry, releases[1])
    ours, spare = map(str, caught.value.refusals)
    assert "where that reason is gone, begin its share with --again [" in ours
    assert "promote it with --again on channel candidate [" in spare
    assert caught.value.message.endswith("acemath registry canary --override-gates --reason TEXT")
    with pytest.raises(GateRefused, match="policy/spare rejected"):
        share(registry, releases[1], again=True)
    registry.remove_status("policy", "spare")
    begun = share(registry, releases[1], again=True)
    assert (begun.generation, begun.canary.share) == (2, 0.1)
    assert registry.log()[-1].why == "a share of 0.1; again: what replicas rejected before was let pass"


def test_the_same_share_again_is_a_generation_in_which_replicas_try_again(
    registry: Registry, releases: list[Release]
) -> None:
    begun = share(registry, releases[1])
    assert share(registry, releases[1]) == begun
    anew = share(registry, releases[1], again=True)
    assert (anew.generation, anew.canary.at) == (begun.generation + 1, begun.canary.at)
    assert anew.canary.share == begun.canary.share


def test_the_share_command(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", DECLARED, by="ann")
    reject(registry, releases[1])
    begin = ("canary", "default", releases[1].id, "--share", "0.1")
    assert "begin its share with --again" in run(registry, *begin).stderr
    assert run(registry, *begin, "--again").exit_code == 0
    stop = run(registry, "canary", "default", "--stop", "--again")
    assert stop.exit_code == 1 and "--stop takes no release" in stop.stderr
    assert run(registry, "canary", "default", "--stop").exit_code == 0


@pytest.mark.parametrize(
    ("age", "counts"), [(0.0, True), (200.0, True), (400.0, False), (86_400.0, False), (-3600.0, True), (None, True)]
)
def test_the_word_of_a_replica_that_has_gone_refuses_nothing(
    age: float | None, counts: bool, registry: Registry, releases: list[Release]
) -> None:
    registry.set_gates("default", DECLARED, by="ann")
    reject(registry, releases[1], at=None if age is None else time.time() - age)
    assert bool(registry.ask_gates("default", releases[1].id)) == counts


def test_what_a_replica_reproduced_holds_after_it_has_gone(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", Gates(canary=CanaryGate.REPRODUCED), by="ann")
    for kind, ref in (("policy", releases[1].policy.ref), ("reward", releases[1].reward.ref)):
        record = {"slots": [{"version": str(ref), "state": "ready"}], "at": time.time() - 86_400}
        registry.write_status(kind, "spare", record)
    assert registry.ask_gates("default", releases[1].id) == ()


@pytest.mark.parametrize("came_by", ["a promotion", "a rollback"])
def test_the_watch_never_takes_back_to_the_bad_one(came_by: str, registry: Registry, releases: list[Release]) -> None:
    registry.set_bands("default", BANDS, by="ann")
    promote(registry, releases[1])
    current = releases[1]
    if came_by == "a rollback":
        registry.rollback("default", by="ann")
        current = releases[0]
    again(registry, current)
    look = Watcher(registry, "default", ScriptedFigures()).look()
    assert look.verdict is (Verdict.NO_FIGURES if came_by == "a promotion" else Verdict.NOT_WATCHED), look


def test_the_command(registry: Registry, releases: list[Release]) -> None:
    promote(registry, releases[1])
    same = ("promote", "default", "--release", releases[1].id)
    told = run(registry, *same)
    assert told.exit_code == 0 and "changed\tfalse" in told.stdout
    assert told.stderr.strip() == (
        "already current (generation 2): nothing changed; --again makes replicas try a rejected version once more"
    )
    document = json.loads(run(registry, *same, "--json").stdout)
    assert (document["changed"], document["generation"]) == (False, 2)
    for number, command in enumerate((same, ("promote", "default")), start=3):
        document = json.loads(run(registry, *command, "--again", "--by", "bob", "--json").stdout)
        found = (document["changed"], document["generation"], document["previous"], document["release"])
        assert found == (True, number, releases[0].id, releases[1].id)
    stale = run(registry, "promote", "default", "--again", "--expect", "3", "--json")
    assert stale.exit_code == 1 and json.loads(stale.stderr)["error"]["param"] == "expected_generation"
    absent = run(registry, "promote", "defualt", "--again")
    assert absent.exit_code == 1 and "'defualt' does not exist" in absent.stderr


def test_replicas_that_follow_see_a_new_generation(
    registry: Registry, releases: list[Release], make_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(NotFound):
        registry.promote("default", "r-0123456789ab", expected_generation=None, by="ann", again=True)
    mark = registry.channel_mark("default")
    again(registry, releases[0])
    assert registry.channel_mark("default") != mark
