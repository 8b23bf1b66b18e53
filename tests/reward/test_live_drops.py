"""Candidates that nobody wants any more, on a real socket: nothing is held or computed for them, others go on."""

from __future__ import annotations

from typing import Any

from reward.live_client import Live
from reward.live_world import Service
from reward.serving import wait_for
from reward.test_live_peeks import TEXT, peeks, posted, write


def cancelled(service: Service) -> float:
    return service.metric('scored_candidates_total{result="cancelled"}')


def held(service: Service) -> None:
    """From now on a pass that begins is held, and `entered` says so."""
    service.model.hold.clear()
    while service.model.entered.acquire(blocking=False):
        pass


def only_score(live: Live, index: int, expected: dict[str, Any]) -> None:
    """The next frame is this score."""
    assert live.receive() == {"type": "score", "index": index, **expected}


def test_what_a_dropped_candidate_holds_is_freed_while_the_others_go_on(service: Service) -> None:
    (expected,) = posted(service, TEXT)
    with Live(service.url) as live:
        write(live, 0, TEXT, TEXT, TEXT)
        write(live, 1, TEXT)
        wait_for(lambda: service.metric("live_pieces_total") == 4)
        before = service.model.live_bytes
        live.send(type="drop", index=0)
        wait_for(lambda: cancelled(service) == 1)
        assert 0 < service.model.live_bytes < before / 2
        live.send(type="end", index=1)
        only_score(live, 1, expected)
    wait_for(lambda: service.held() == 0)
    assert cancelled(service) == 1, "closing counts it no more"


def test_cells_of_a_dropped_candidate_are_not_computed(service: Service) -> None:
    held(service)
    with Live(service.url) as live:
        assert service.model.entered.acquire(timeout=60), "the prompt is in a pass"
        write(live, 0, TEXT * 3)
        write(live, 1, "7")
        live.send(type="drop", index=0)
        live.send(type="end", index=1)
        wait_for(lambda: cancelled(service) == 1)
        computed = len(service.model.passes)
        service.model.hold.set()
        live.scores(1)
    assert [len(cells) for cells in service.model.passes[computed:]] == [1], "the other's only one"


def test_whatever_comes_of_a_dropped_candidate_is_ignored(service: Service) -> None:
    (expected,) = posted(service, "7")
    with Live(service.url) as live:
        write(live, 0, TEXT)
        for kind in ("drop", "piece", "peek", "end", "drop"):
            live.send(type=kind, index=0, **({"text": TEXT} if kind == "piece" else {}))
        live.write(1, ["7"])
        only_score(live, 1, expected)
    assert (cancelled(service), service.metric('scored_candidates_total{result="failed"}')) == (1, 0)


def test_a_peek_goes_with_its_candidate_and_a_pass_under_way_gives_nothing(service: Service) -> None:
    (expected,) = posted(service, "7")
    with Live(service.url) as live:
        write(live, 0, TEXT)
        wait_for(lambda: service.metric("live_cells_total") >= 2)
        held(service)
        live.send(type="peek", index=0)
        assert service.model.entered.acquire(timeout=60), "the peek is in a pass"
        live.send(type="drop", index=0)
        wait_for(lambda: peeks(service, "dropped") == 1)
        service.model.hold.set()
        live.write(1, ["7"])
        only_score(live, 1, expected)


def test_what_a_pass_under_way_could_not_score_is_no_error_of_a_dropped_candidate(service: Service) -> None:
    (expected,) = posted(service, "7")
    answer = service.model.answer
    with Live(service.url) as live:
        write(live, 0, TEXT)
        wait_for(lambda: service.metric("live_cells_total") >= 2)
        held(service)
        service.model.answer = lambda prompt, own: float("nan") if len(own) > 8 else answer(prompt, own)
        live.send(type="end", index=0)
        assert service.model.entered.acquire(timeout=60), "its last cell is in a pass"
        live.send(type="drop", index=0)
        wait_for(lambda: cancelled(service) == 1)
        service.model.hold.set()
        live.write(1, ["7"])
        only_score(live, 1, expected)


def test_a_candidate_that_waits_for_its_score_may_be_dropped_and_one_that_has_it_stays_as_it_is(
    service: Service,
) -> None:
    one, two = posted(service, "7", "8")
    with Live(service.url) as live:
        live.write(0, ["7"])
        only_score(live, 0, one)
        live.send(type="drop", index=0)
        service.model.hold.clear()
        live.write(1, [TEXT])
        live.send(type="drop", index=1)
        wait_for(lambda: cancelled(service) == 1)
        service.model.hold.set()
        live.write(2, ["8"])
        only_score(live, 2, two)
    assert cancelled(service) == 1


def test_a_drop_of_what_never_began_ends_the_connection(service: Service) -> None:
    with Live(service.url) as live:
        live.send(type="drop", index=0)
        frame, code = live.last()
    assert (frame["code"], frame["param"], code) == ("invalid_request", "index", 1008)
    assert "candidate 0" in frame["message"]
