import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from registry.faults import run_at_once
from registry.tiny import METADATA

from acemath_registry import (
    Channel,
    Conflict,
    InvalidRequest,
    ModelKind,
    ModelRef,
    NotFound,
    Registry,
    RejectReason,
    Release,
    VerificationError,
)


@pytest.fixture
def releases(
    registry: Registry, policy: ModelRef, reward: ModelRef, make_checkpoint: Callable[..., Path]
) -> list[Release]:
    others = [
        registry.publish(make_checkpoint(mark=f"other-{i}"), name="pol", kind="policy", metadata=METADATA)
        for i in range(3)
    ]
    return [registry.create_release(ref, reward) for ref in (policy, *others)]


def test_a_release_is_its_content(registry: Registry, policy: ModelRef, reward: ModelRef) -> None:
    release = registry.create_release(policy, reward)
    path = registry.root / "releases" / f"{release.id}.json"
    inode = path.stat().st_ino
    assert registry.create_release(policy, reward) == release == registry.release(release.id)
    assert path.stat().st_ino == inode
    assert json.loads(path.read_text()).keys() == {"policy", "reward"}
    assert release.member(ModelKind.POLICY).ref == policy and release.member(ModelKind.REWARD).ref == reward
    assert registry.release_ids() == [release.id]


def test_a_release_needs_one_of_each(registry: Registry, policy: ModelRef, reward: ModelRef) -> None:
    for pair in ((reward, policy), (policy, policy)):
        with pytest.raises(VerificationError) as caught:
            registry.create_release(*pair)
        assert caught.value.reason is RejectReason.WRONG_KIND
    with pytest.raises(NotFound):
        registry.create_release(policy, ModelRef("rew", "s7-0123456789ab"))
    assert registry.release_ids() == []


def test_an_edited_release_is_found_and_can_be_made_again(
    registry: Registry, policy: ModelRef, reward: ModelRef
) -> None:
    release = registry.create_release(policy, reward)
    registry.promote("default", release.id, expected_generation=0, by="test")
    path = registry.root / "releases" / f"{release.id}.json"
    path.write_text(path.read_text().replace("pol", "pox"))
    for read in (lambda: registry.release(release.id), lambda: registry.channel("default")):
        with pytest.raises(VerificationError) as caught:
            read()
        assert caught.value.reason is RejectReason.RELEASE_EDITED
    assert registry.create_release(policy, reward) == registry.release(release.id)
    registry.channel("default")


def test_promote_moves_the_pointer(registry: Registry, releases: list[Release]) -> None:
    with pytest.raises(NotFound, match="promote a release"):
        registry.channel("default")
    first = registry.promote("default", releases[0].id, expected_generation=0, by="alice")
    assert (first.release, first.generation, first.previous, first.by) == (releases[0].id, 1, None, "alice")
    second = registry.promote("default", releases[1].id, expected_generation=1, by="bob")
    assert (second.release, second.generation, second.previous) == (releases[1].id, 2, releases[0].id)
    assert second.release_sha256 == releases[1].sha256
    assert registry.channel("default") == second
    document = json.loads((registry.root / "channels" / "default.json").read_text())
    assert document.keys() == {"release", "release_sha256", "generation", "previous", "by", "at"}
    assert registry.channel_names() == ["default"]


def test_promoting_what_is_current_changes_nothing(registry: Registry, releases: list[Release]) -> None:
    before = registry.promote("default", releases[0].id, expected_generation=None, by="alice")
    assert registry.promote("default", releases[0].id, expected_generation=None, by="bob") == before
    assert registry.promote("default", releases[0].id, expected_generation=1, by="bob") == before
    assert registry.channel("default") == before


def test_a_stale_generation_loses(registry: Registry, releases: list[Release]) -> None:
    registry.promote("default", releases[0].id, expected_generation=None, by="alice")
    for wrong in (0, 2, 99):
        with pytest.raises(Conflict, match=f"at generation 1 .*not {wrong}") as caught:
            registry.promote("default", releases[1].id, expected_generation=wrong, by="bob")
        assert caught.value.should_retry is False
    with pytest.raises(Conflict):
        registry.promote("new", releases[1].id, expected_generation=1, by="bob")
    with pytest.raises(Conflict):
        registry.rollback("default", by="bob", expected_generation=9)
    assert registry.channel("default").release == releases[0].id
    assert registry.channel_names() == ["default"]


def test_rollback_is_a_promotion_of_the_previous(registry: Registry, releases: list[Release]) -> None:
    with pytest.raises(NotFound):
        registry.rollback("default", by="test")
    registry.promote("default", releases[0].id, expected_generation=None, by="test")
    with pytest.raises(Conflict, match="no release before"):
        registry.rollback("default", by="test")
    registry.promote("default", releases[1].id, expected_generation=None, by="test")
    back = registry.rollback("default", by="test", expected_generation=2)
    assert (back.release, back.generation, back.previous) == (releases[0].id, 3, releases[1].id)
    forth = registry.rollback("default", by="test")
    assert (forth.release, forth.generation) == (releases[1].id, 4)


def test_what_can_not_be_promoted(registry: Registry, releases: list[Release]) -> None:
    absent = "r-0123456789ab"
    with pytest.raises(NotFound, match=absent):
        registry.promote("default", absent, expected_generation=None, by="test")
    for channel, release, by in (
        ("../up", releases[0].id, "test"),
        ("default", "latest", "test"),
        ("default", releases[0].id, ""),
        ("default", releases[0].id, "a\nb"),
        ("default", releases[0].id, "x" * 201),
    ):
        with pytest.raises(InvalidRequest):
            registry.promote(channel, release, expected_generation=None, by=by)
    member = releases[0].policy.ref
    (registry.path(member) / "manifest.json").write_text("{}")
    with pytest.raises(VerificationError) as caught:
        registry.promote("default", releases[0].id, expected_generation=None, by="test")
    assert caught.value.reason is RejectReason.MANIFEST_EDITED
    assert registry.channel_names() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"release": "r-0123456789ab"}'])
def test_a_broken_pointer_is_said(registry: Registry, releases: list[Release], text: str) -> None:
    registry.promote("default", releases[0].id, expected_generation=None, by="test")
    (registry.root / "channels" / "default.json").write_text(text)
    with pytest.raises(VerificationError) as caught:
        registry.channel("default")
    assert caught.value.reason is RejectReason.CHANNEL_MALFORMED


def test_a_release_file_that_is_no_release(registry: Registry, releases: list[Release]) -> None:
    from acemath_registry.documents import sha256_hex

    data = b'{"policy": 1}\n'
    release_id = f"r-{sha256_hex(data)[:12]}"
    (registry.root / "releases" / f"{release_id}.json").write_bytes(data)
    with pytest.raises(VerificationError, match="schema"):
        registry.release(release_id)


def test_exactly_one_of_many_wins(registry: Registry, releases: list[Release]) -> None:
    registry.promote("default", releases[0].id, expected_generation=0, by="test")
    for generation in (1, 2, 3):
        current = registry.channel("default").release
        candidates = [release.id for release in releases if release.id != current] * 2

        def promote(number: int, candidates: list[str] = candidates, generation: int = generation) -> str:
            channel = registry.promote(
                "default", candidates[number], expected_generation=generation, by=f"process {number}"
            )
            return channel.release

        results = run_at_once(len(candidates), promote)
        winners = [result for result in results if result != "Conflict"]
        assert len(winners) == 1, results
        found = registry.channel("default")
        assert (found.release, found.generation, found.previous) == (winners[0], generation + 1, current)


def test_readers_see_whole_pointers_while_it_is_written(registry: Registry, releases: list[Release]) -> None:
    registry.promote("default", releases[0].id, expected_generation=None, by="test")

    def act(number: int) -> str:
        last = 0
        for turn in range(30):
            if number == 0:
                registry.promote("default", releases[turn % 4].id, expected_generation=None, by="writer")
            generation = registry.channel("default").generation
            assert generation >= last
            last = generation
        return "fine"

    assert run_at_once(3, act) == ["fine"] * 3


def test_promote_and_rollback_as_a_state_machine(registry: Registry, releases: list[Release]) -> None:
    """Against a model: generations only grow, by one for each change, and `previous` is what was there before."""
    ids = [release.id for release in releases]
    channels = iter(range(10**6))

    class Pointer(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.name = f"channel-{next(channels)}"
            self.history: list[str] = []

        @rule(release=st.sampled_from(ids), offset=st.sampled_from([None, 0, 0, -1, 1]))
        def promote(self, release: str, offset: int | None) -> None:
            expected = None if offset is None else max(0, len(self.history) + offset)
            if expected is not None and expected != len(self.history):
                with pytest.raises(Conflict):
                    registry.promote(self.name, release, expected_generation=expected, by="test")
                return
            self.check(registry.promote(self.name, release, expected_generation=expected, by="test"), release)

        @rule()
        def rollback(self) -> None:
            if len(self.history) < 2:
                with pytest.raises((NotFound, Conflict)):
                    registry.rollback(self.name, by="test")
                return
            self.check(registry.rollback(self.name, by="test"), self.history[-2])

        @invariant()
        def reads_agree(self) -> None:
            if getattr(self, "history", None):
                self.check(registry.channel(self.name), self.history[-1])

        def check(self, channel: Channel, release: str) -> None:
            if not self.history or self.history[-1] != release:
                self.history.append(release)
            previous = self.history[-2] if len(self.history) > 1 else None
            found = (channel.release, channel.generation, channel.previous)
            assert found == (release, len(self.history), previous)

    run_state_machine_as_test(Pointer, settings=settings(max_examples=30, stateful_step_count=15, deadline=None))
