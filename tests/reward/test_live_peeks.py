"""Peeks on a real socket, under bad luck and bad will. A model of microseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from reward.live_client import MESSAGES, Live
from reward.live_world import Service
from reward.serving import wait_for

TEXT = "Tom has 3 apples and buys 4 more. "


def posted(service: Service, *candidates: Any) -> list[dict[str, Any]]:
    body = {"messages": MESSAGES, "candidates": candidates}
    answer = httpx.post(service.url + "/v1/score", json=body, timeout=60, verify=False)
    return [{"score": item["score"], "tokens": item["tokens"]} for item in answer.json()["data"]]


def peeks(service: Service, result: str) -> float:
    return service.metric(f'live_peeks_total{{result="{result}"}}')


def write(live: Live, index: int, *pieces: str) -> None:
    live.write(index, pieces, end=False)


def test_partials_come_in_order_and_the_score_is_the_last(service: Service) -> None:
    with Live(service.url) as live:
        for count in (1, 2, 3):
            write(live, 0, TEXT)
            live.send(type="peek", index=0)
            (expected,) = posted(service, TEXT * count)
            assert live.receive() == {"type": "partial", "index": 0, **expected}
        live.send(type="end", index=0)
        assert live.receive() == {"type": "score", "index": 0, **posted(service, TEXT * 3)[0]}
    wait_for(lambda: service.held() == 0)
    assert (peeks(service, "answered"), peeks(service, "dropped"), peeks(service, "failed")) == (3, 0, 0)
    assert service.metric("live_partial_seconds_count") == 3
    assert service.metric('scored_candidates_total{result="scored"}') == 4 + 1, "four posted; a partial one is no score"


@pytest.mark.parametrize("pieces", [["Tom has"], [""], [[5, 6, 7]], [[2]]], ids=str)
def test_what_is_worth_nothing_yet_has_a_partial_score(service: Service, pieces: list[Any]) -> None:
    with Live(service.url) as live:
        live.write(0, pieces, end=False)
        live.send(type="peek", index=0)
        (expected,) = posted(service, pieces[0] if isinstance(pieces[0], str) else {"token_ids": pieces[0]})
        assert live.receive() == {"type": "partial", "index": 0, **expected}


def test_a_peek_that_waits_when_its_candidate_ends_is_dropped(service: Service) -> None:
    expected = posted(service, TEXT * 2, "7")
    service.model.hold.clear()
    with Live(service.url) as live:
        write(live, 0, TEXT)
        live.send(type="peek", index=0)
        write(live, 0, TEXT)
        live.send(type="end", index=0)
        write(live, 1, "7")
        live.send(type="peek", index=1)
        wait_for(lambda: peeks(service, "dropped") == 1 and service.metric("live_pieces_total") == 3)
        service.model.hold.set()
        found = {frame["index"]: frame for frame in (live.receive(), live.receive())}
        assert found[0] == {"type": "score", "index": 0, **expected[0]}
        assert found[1] == {"type": "partial", "index": 1, **expected[1]}
        live.send(type="end", index=1)
        assert live.receive() == {"type": "score", "index": 1, **expected[1]}, "and nothing else came in between"


def test_a_partial_that_is_computed_while_its_candidate_ends_is_not_its_score(service: Service) -> None:
    (expected,) = posted(service, TEXT * 2)
    with Live(service.url) as live:
        write(live, 0, TEXT)
        wait_for(lambda: service.metric("live_cells_total") >= 2)
        service.model.hold.clear()
        while service.model.entered.acquire(blocking=False):
            pass
        live.send(type="peek", index=0)
        assert service.model.entered.acquire(timeout=60), "the peek is in a pass"
        write(live, 0, TEXT)
        live.send(type="end", index=0)
        wait_for(lambda: peeks(service, "dropped") == 1)
        service.model.hold.set()
        assert live.receive() == {"type": "score", "index": 0, **expected}


@pytest.mark.parametrize("before", [[], ["piece", "end"]], ids=["unknown", "ended"])
def test_a_peek_of_what_is_not_being_written_ends_the_connection(service: Service, before: list[str]) -> None:
    with Live(service.url) as live:
        if before:
            live.write(0, ["7"])
            live.scores(1)
        live.send(type="peek", index=0)
        frame, code = live.last()
    assert (frame["code"], frame["param"], code) == ("invalid_request", "index", 1008)
    assert "candidate 0" in frame["message"]


@pytest.mark.parametrize("extra", [{"index": -1}, {"index": "0"}, {"index": 0, "text": "x"}, {}], ids=str)
def test_a_bad_peek_is_named(service: Service, extra: dict[str, Any]) -> None:
    with Live(service.url) as live:
        write(live, 0, "7")
        live.send(type="peek", **extra)
        frame, _ = live.last()
    assert frame["param"] == ("text" if "text" in extra else "index")


def test_a_second_peek_at_a_time_costs_its_candidate(service: Service) -> None:
    service.model.hold.clear()
    with Live(service.url) as live:
        write(live, 0, TEXT)
        write(live, 1, "7")
        for index in (0, 1, 0):
            live.send(type="peek", index=index)
        frame = live.receive()
        assert (frame["type"], frame["index"], frame["code"], frame["param"]) == (
            "error",
            0,
            "invalid_request",
            "index",
        )
        assert "candidate 0" in frame["message"] and "wait for its partial" in frame["message"]
        live.send(type="peek", index=0)  # which the client could not know yet
        service.model.hold.set()
        assert live.receive()["type"] == "partial"
        live.send(type="end", index=1)
        assert live.scores(1)[1]
    wait_for(lambda: service.held() == 0)
    assert peeks(service, "failed") == 1 and peeks(service, "answered") == 1


def test_a_peek_at_more_than_the_model_takes_is_an_error_of_its_candidate(service: Service) -> None:
    (room,) = {320 - item["tokens"] for item in posted(service, {"token_ids": [5]})}
    with Live(service.url) as live:
        live.write(0, [[5] * (room + 2)], end=False)  # fits; the end of turn behind it does not
        live.write(1, [[5] * (room + 1)], end=False)
        for index in (0, 1):
            live.send(type="peek", index=index)
        found = {frame["index"]: frame for frame in (live.receive(), live.receive())}
    assert (found[0]["type"], found[0]["code"]) == ("error", "context_length_exceeded")
    assert (found[1]["type"], found[1]["tokens"]) == ("partial", 320)
    wait_for(lambda: service.held() == 0)


def test_a_partial_score_that_is_no_number_fails_its_candidate(service: Service) -> None:
    with Live(service.url) as live:
        write(live, 0, TEXT)
        write(live, 1, "7")
        service.model.answer = lambda prompt, own: float("nan") if len(own) > 8 else 1.5
        live.send(type="peek", index=0)
        frame = live.receive()
        assert (frame["type"], frame["index"], frame["code"]) == ("error", 0, "internal_error")
        live.send(type="peek", index=1)
        assert live.receive()["score"] == 1.5
    wait_for(lambda: service.metric('scored_candidates_total{result="failed"}') == 1)


def test_closing_drops_peeks_and_frees_them(service: Service) -> None:
    service.model.hold.clear()
    with Live(service.url) as live:
        for index in range(10):
            write(live, index, TEXT)
            live.send(type="peek", index=index)
        wait_for(lambda: service.metric("live_pieces_total") == 10)
    wait_for(lambda: peeks(service, "dropped") == 10)
    service.model.hold.set()
    wait_for(lambda: service.held() == 0)


def test_a_connection_that_waits_for_a_partial_is_not_idle(start: Callable[..., Service]) -> None:
    service = start(live_idle_seconds=1.0)
    service.model.hold.clear()
    with Live(service.url) as waiting, Live(service.url) as idle:
        write(waiting, 0, "7")
        waiting.send(type="peek", index=0)
        assert idle.last()[0]["code"] == "idle_timeout"
        service.model.hold.set()
        assert waiting.receive()["type"] == "partial"
