"""A share of a channel's requests: begun, changed and ended by compare-and-set, and nothing to older readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pydantic import AwareDatetime, BaseModel, ConfigDict
from registry.faults import run_at_once
from registry.tiny import METADATA
from typer.testing import CliRunner

from acemath_registry import (
    CanaryGate,
    Channel,
    Conflict,
    GateRefused,
    Gates,
    InvalidRequest,
    ModelRef,
    NotFound,
    Registry,
    Release,
    VerificationError,
)
from acemath_registry.cli import app
from acemath_registry.collect import Action, Retention

NUMBERS = st.integers(0, 2)  # of a release


@pytest.fixture
def releases(registry: Registry, reward: ModelRef, make_checkpoint: Callable[..., Path]) -> list[Release]:
    """Three releases; the first one is current."""
    refs = [
        registry.publish(make_checkpoint(mark=f"number {i}"), name="pol", kind="policy", metadata=METADATA)
        for i in range(3)
    ]
    made = [registry.create_release(ref, reward) for ref in refs]
    registry.promote("default", made[0].id, expected_generation=None, by="ann")
    return made


def document(registry: Registry) -> dict[str, object]:
    found = json.loads((registry.root / "channels" / "default.json").read_text())
    assert isinstance(found, dict)
    return found


def moves(registry: Registry) -> list[tuple[str, str | None, str | None, int | None]]:
    lines = [line for line in registry.log() if line.what == "default"]
    return [(line.event.value, line.before, line.after, line.generation) for line in lines]


def test_a_share_begins_changes_and_ends(registry: Registry, releases: list[Release]) -> None:
    a, b = releases[0].id, releases[1].id
    before = registry.channel("default")
    first = registry.canary("default", b, 0.05, by="bob", expected_generation=1)
    assert first.canary is not None and (first.canary.release, first.canary.share) == (b, 0.05)
    assert first.canary.release_sha256 == releases[1].sha256 and first.canary.by == "bob"
    assert registry.channel("default") == first and registry.canary_release(first) == releases[1]
    assert first.model_copy(update={"canary": None, "generation": 1}) == before, "who promoted the current one stays"
    assert registry.canary("default", b, 0.05, by="eve") == first, "the same again changes nothing"
    more = registry.canary("default", b, 0.5, by="eve")
    assert more.canary is not None and (more.generation, more.canary.share, more.canary.by) == (3, 0.5, "eve")
    assert more.canary.at == first.canary.at
    ended = registry.stop_canary("default", by="bob", expected_generation=3, why="enough seen")
    assert ended == before.model_copy(update={"generation": 4}) == registry.channel("default")
    assert "canary" not in document(registry)
    assert moves(registry)[1:] == [("canary", a, b, 2), ("canary", a, b, 3), ("canary_stop", b, a, 4)]
    assert [line.why for line in registry.log()][-3:] == ["a share of 0.05", "a share of 0.5", "enough seen"]


@pytest.mark.parametrize("how", ["promote it", "promote another", "roll back"])
def test_a_promotion_and_a_rollback_end_it(registry: Registry, releases: list[Release], how: str) -> None:
    registry.promote("default", releases[1].id, expected_generation=None, by="ann")
    registry.canary("default", releases[2].id, 0.5, by="ann")
    if how == "roll back":
        changed = registry.rollback("default", by="ann")
    else:
        to = releases[2 if how == "promote it" else 0].id
        changed = registry.promote("default", to, expected_generation=3, by="ann")
    assert (changed.generation, changed.previous, changed.canary) == (4, releases[1].id, None)
    assert registry.log()[-1].why == f"the share of {releases[2].id} ends"
    assert registry.promote("default", changed.release, expected_generation=4, by="ann") == changed


def test_promoting_the_current_one_leaves_the_share(registry: Registry, releases: list[Release]) -> None:
    shared = registry.canary("default", releases[1].id, 0.5, by="ann")
    assert registry.promote("default", releases[0].id, expected_generation=None, by="ann") == shared


def test_what_can_not_get_a_share(registry: Registry, releases: list[Release]) -> None:
    a, b, c = (release.id for release in releases)
    for share in (0.0, -0.1, 1.0, 1.0001, float("nan"), float("inf")):
        said = "promote it instead: acemath registry promote default" if share == 1.0 else "no share of the requests"
        with pytest.raises(InvalidRequest, match=said):
            registry.canary("default", b, share, by="ann")
    with pytest.raises(Conflict, match="is the current release"):
        registry.canary("default", a, 0.5, by="ann")
    with pytest.raises(Conflict, match="no release has a share"):
        registry.stop_canary("default", by="ann")
    for call in (lambda: registry.canary("none", b, 0.5, by="a"), lambda: registry.stop_canary("none", by="a")):
        with pytest.raises(NotFound, match="promote a release"):
            call()
    with pytest.raises(NotFound):
        registry.canary("default", "r-0123456789ab", 0.5, by="ann")
    with pytest.raises(Conflict, match="generation 1"):
        registry.canary("default", b, 0.5, by="ann", expected_generation=2)
    registry.canary("default", b, 0.5, by="ann")
    with pytest.raises(Conflict, match="stop it first"):
        registry.canary("default", c, 0.5, by="ann")
    with pytest.raises(Conflict, match="generation 2"):
        registry.stop_canary("default", by="ann", expected_generation=1)
    assert registry.channel("default").generation == 2


def test_gates_are_asked_before_it_begins(registry: Registry, releases: list[Release]) -> None:
    registry.set_gates("default", Gates(canary=CanaryGate.DECLARED), by="ann")
    with pytest.raises(GateRefused):
        registry.canary("default", releases[1].id, 0.1, by="ann")
    assert registry.channel("default").canary is None
    registry.canary("default", releases[1].id, 0.1, by="ann", override="an old version, known to be good")
    assert [line.event.value for line in registry.log()][-2:] == ["override_gates", "canary"]
    assert registry.canary("default", releases[1].id, 0.2, by="ann").generation == 3, "it was let in"
    with pytest.raises(GateRefused):
        registry.promote("default", releases[1].id, expected_generation=None, by="ann")


def test_it_can_be_stopped_whatever_became_of_its_release(registry: Registry, releases: list[Release]) -> None:
    channel = registry.canary("default", releases[1].id, 0.1, by="ann")
    (registry.root / "releases" / f"{releases[1].id}.json").write_text("{}")
    assert registry.channel("default") == channel, "it holds the current release up in nothing"
    with pytest.raises(VerificationError):
        registry.canary_release(channel)
    assert registry.stop_canary("default", by="ann").canary is None


def test_a_release_with_a_share_is_never_collected(registry: Registry, releases: list[Release]) -> None:
    registry.canary("default", releases[1].id, 0.1, by="ann")
    verdicts = registry.collect(Retention(newest=0, age_s=0.0, grace_s=0.0), by="gc", apply=False)
    kept = {one.ref: one for one in verdicts}
    assert kept[releases[1].policy.ref].why == "channel default gives it a share of the requests"
    assert kept[releases[2].policy.ref].action is Action.MARK


class OldChannel(BaseModel):
    """The record as the release before this one read it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    release: str
    release_sha256: str
    generation: int
    previous: str | None = None
    by: str
    at: AwareDatetime


def test_old_and_new_readers_understand_each_other(registry: Registry, releases: list[Release]) -> None:
    path = registry.root / "channels" / "default.json"
    old = OldChannel.model_validate_json(path.read_text())
    path.write_text(old.model_dump_json())
    assert registry.channel("default").canary is None
    registry.canary("default", releases[1].id, 0.1, by="ann")
    read = OldChannel.model_validate_json(path.read_text())
    assert (read.release, read.generation) == (releases[0].id, 2)


def test_a_share_of_everything_that_a_record_has_can_be_read_changed_and_stopped(
    registry: Registry, releases: list[Release]
) -> None:
    """Versions of before gave one."""
    registry.canary("default", releases[1].id, 0.5, by="ann")
    path, old = registry.root / "channels" / "default.json", document(registry)
    assert isinstance(old["canary"], dict)
    path.write_text(json.dumps(old | {"canary": old["canary"] | {"share": 1.0}}))
    found = registry.channel("default").canary
    assert found is not None and found.share == 1.0
    less = registry.canary("default", releases[1].id, 0.5, by="ann")
    assert (less.generation, less.canary and less.canary.share) == (3, 0.5)
    assert registry.stop_canary("default", by="ann").canary is None


def test_exactly_one_of_many_changes_wins(registry: Registry, releases: list[Release]) -> None:
    ids = [release.id for release in releases]
    for _ in range(3):
        registry.promote("default", ids[1], expected_generation=None, by="ann")
        generation = registry.promote("default", ids[0], expected_generation=None, by="ann").generation
        generation = registry.canary("default", ids[1], 0.1, by="ann").generation
        acts: list[Callable[[], Channel]] = [
            lambda g=generation: registry.promote("default", ids[1], expected_generation=g, by="p"),
            lambda g=generation: registry.promote("default", ids[2], expected_generation=g, by="q"),
            lambda g=generation: registry.rollback("default", expected_generation=g, by="r"),
            lambda g=generation: registry.canary("default", ids[1], 0.2, expected_generation=g, by="s"),
            lambda g=generation: registry.stop_canary("default", expected_generation=g, by="t"),
        ]
        results = run_at_once(len(acts), lambda number, acts=acts: acts[number]().model_dump_json())
        winners = [result for result in results if result != "Conflict"]
        assert len(winners) == 1, results
        assert registry.channel("default").model_dump_json() == winners[0]
        assert registry.channel("default").generation == generation + 1


class Changes(RuleBasedStateMachine):
    """Against a model (current, previous, canary, share): a change adds one to the generation, or changes nothing."""

    registry: Registry
    ids: list[str]
    made = 0

    @initialize()
    def start(self) -> None:
        Changes.made += 1
        self.name, self.generation = f"channel-{Changes.made}", 1
        self.current, self.previous = self.ids[0], ""
        self.shared: tuple[str, float] | None = None
        self.registry.promote(self.name, self.ids[0], expected_generation=0, by="test")

    @rule(number=NUMBERS)
    def promote(self, number: int) -> None:
        self.registry.promote(self.name, self.ids[number], expected_generation=self.generation, by="test")
        if self.ids[number] != self.current:
            self.moved(self.ids[number])

    @rule()
    def rollback(self) -> None:
        if not self.previous:
            with pytest.raises(Conflict):
                self.registry.rollback(self.name, by="test")
            return
        self.registry.rollback(self.name, by="test", expected_generation=self.generation)
        self.moved(self.previous)

    @rule(number=NUMBERS, share=st.sampled_from([0.1, 0.5, 0.999]))
    def canary(self, number: int, share: float) -> None:
        release = self.ids[number]
        if release == self.current or (self.shared is not None and self.shared[0] != release):
            with pytest.raises(Conflict):
                self.registry.canary(self.name, release, share, by="test")
            return
        self.registry.canary(self.name, release, share, by="test", expected_generation=self.generation)
        self.generation += self.shared != (release, share)
        self.shared = release, share

    @rule()
    def stop(self) -> None:
        if self.shared is None:
            with pytest.raises(Conflict):
                self.registry.stop_canary(self.name, by="test")
            return
        self.registry.stop_canary(self.name, by="test", expected_generation=self.generation)
        self.generation, self.shared = self.generation + 1, None

    @rule(wrong=st.sampled_from([-1, 1, 7]))
    def stale(self, wrong: int) -> None:
        for call in (self.registry.stop_canary, self.registry.rollback):
            with pytest.raises(Conflict):
                call(self.name, by="test", expected_generation=max(0, self.generation + wrong))

    @invariant()
    def reads_agree(self) -> None:
        if hasattr(self, "name"):
            found = self.registry.channel(self.name)
            shared = None if found.canary is None else (found.canary.release, found.canary.share)
            expected = (self.current, self.previous or None, self.generation, self.shared)
            assert (found.release, found.previous, found.generation, shared) == expected

    def moved(self, release: str) -> None:
        self.current, self.previous = release, self.current
        self.generation, self.shared = self.generation + 1, None


def test_all_changes_as_a_state_machine(registry: Registry, releases: list[Release]) -> None:
    Changes.registry, Changes.ids = registry, [release.id for release in releases]
    run_state_machine_as_test(Changes, settings=settings(max_examples=20, stateful_step_count=12, deadline=None))


def test_the_command(registry: Registry, releases: list[Release]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*arguments, "--root", str(registry.root), "--json"])
        return done.exit_code, done.stdout or done.stderr

    code, begun = run("canary", "default", releases[1].id, "--share", "0.05", "--expect", "1", "--by", "bob")
    assert code == 0 and json.loads(begun)["canary"]["share"] == 0.05
    code, shown = run("show", "default")
    assert code == 0 and json.loads(shown)["canary"]["release"] == releases[1].id
    for wrong in (
        (),
        (releases[1].id,),
        (releases[1].id, "--share", "0"),
        (releases[1].id, "--share", "1"),
        (releases[1].id, "--share", "0.1", "--override-gates"),
        ("--stop", "--share", "0.1"),
        ("--stop", "--expect", "1"),
    ):
        assert run("canary", "default", *wrong)[0] == 1, wrong
    code, stopped = run("canary", "default", "--stop", "--reason", "slow")
    assert code == 0 and "canary" not in json.loads(stopped) and registry.log()[-1].why == "slow"
