"""What a replica's status record says of a version: its last slot, for as long as the replica is there."""

import time
from typing import Any

import pytest

from acemath_registry.words import Word, words

VERSION = "pol@s7-0123456789ab"


def said(*slots: Any, **record: Any) -> list[Word]:
    return list(words({"p0": {"slots": list(slots), "at": time.time()} | record}, VERSION))


def slot(state: str, version: str = VERSION, reason: str | None = None) -> dict[str, Any]:
    return {"version": version, "state": state, "reason": reason}


def test_the_last_slot_of_the_version_counts() -> None:
    (word,) = said(slot("active"), slot("rejected", reason="canary: off by 3"), slot("active", "pol@s8-0123456789ab"))
    assert (word.instance, word.state, word.reason) == ("p0", "rejected", "canary: off by 3")
    assert word.rejects() and not word.reproduced
    (word,) = said(slot("rejected"), slot("ready"))
    assert word.reproduced and not word.rejects()


def test_who_does_not_name_it_says_nothing() -> None:
    assert said() == [] == said(slot("active", "other@s7-0123456789ab"))
    assert said("no slot", 3) == [] == said(slots="no list") == said(slots=None)


@pytest.mark.parametrize(("age", "gone"), [(0.0, False), (299.0, False), (400.0, True), (None, False)])
def test_who_has_gone_rejects_nothing_any_more(age: float | None, gone: bool) -> None:
    (word,) = said(slot("rejected"), at=None if age is None else time.time() - age)
    assert (word.gone, word.rejects()) == (gone, not gone)


def test_a_channel_that_is_to_try_again_lets_pass_what_its_own_replicas_said() -> None:
    for channel, counts in (("default", False), ("candidate", True), (None, False)):
        (word,) = said(slot("rejected"), channel=channel)
        assert word.rejects("default") == counts and word.rejects()
