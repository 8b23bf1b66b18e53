"""One live connection serves one job after another, and nothing of a job reaches the next."""

from __future__ import annotations

from collections.abc import Callable

from reward.live_client import MESSAGES, Live
from reward.live_world import Service
from reward.serving import wait_for

OTHER = [{"role": "user", "content": "Ann has 5 pears and eats 2."}]


def done(live: Live) -> None:
    live.send(type="done")
    assert live.receive() == {"type": "done"}


def ends(service: Service, reason: str) -> float:
    return service.metric(f'live_ends_total{{reason="{reason}"}}')


def alone(service: Service, text: str, messages: list[dict[str, str]]) -> float:
    with Live(service.url, opened=False) as live:
        live.send(type="open", messages=messages)
        live.write(0, [text])
        return float(live.scores(1)[0]["score"])


def test_jobs_in_turn_are_scored_as_if_each_were_alone(service: Service) -> None:
    texts = ["She has 7. ", "She has 3. "]
    expected = [alone(service, text, messages) for text, messages in zip(texts, (MESSAGES, OTHER), strict=True)]
    assert expected[0] != expected[1]
    # A connection's end is counted when the service sees it close, not when its client has closed it.
    wait_for(lambda: ends(service, "closed") == 2)
    with Live(service.url) as live:
        live.write(0, [texts[0]])
        assert live.scores(1)[0]["score"] == expected[0]
        done(live)
        live.send(type="open", messages=OTHER)
        live.write(0, [texts[1]])
        assert live.scores(1)[0]["score"] == expected[1]
        done(live)
    assert ends(service, "done") == 2 and ends(service, "closed") == 2


def test_done_frees_what_is_left_and_its_scores_never_come(service: Service) -> None:
    expected = alone(service, "3", OTHER)
    service.model.hold.clear()
    with Live(service.url) as live:
        for index in range(8):
            live.write(index, ["Tom has 3 apples and buys 4 more. " * 3], end=index % 2 == 0)
        wait_for(lambda: service.metric("live_pieces_total") >= 8)
        done(live)
        assert service.metric("live_sessions") == 0
        live.send(type="open", messages=OTHER)
        live.write(0, ["3"])
        service.model.hold.set()
        assert live.receive() == {"type": "score", "index": 0, "score": expected, "tokens": live_tokens(service)}
        done(live)
        wait_for(lambda: service.held() == 0)
    assert service.metric('scored_candidates_total{result="cancelled"}') == 8


def live_tokens(service: Service) -> int:
    with Live(service.url, opened=False) as live:
        live.send(type="open", messages=OTHER)
        live.write(0, ["3"])
        return int(live.scores(1)[0]["tokens"])


def test_an_opening_may_follow_in_the_same_message(service: Service) -> None:
    with Live(service.url, joined=True) as live:
        live.connection.send(
            '[{"type": "done"}, {"type": "open", "messages": [{"role": "user", "content": "1 + 1?"}]},'
            ' {"type": "piece", "index": 0, "text": "2"}, {"type": "end", "index": 0}]'
        )
        assert [live.receive()["type"], live.receive()["type"]] == ["done", "score"]


def test_a_job_is_opened_once(service: Service) -> None:
    with Live(service.url) as live:
        live.send(type="open", messages=MESSAGES)
        frame, code = live.last()
    assert (frame["param"], code) == ("type", 1008) and "done" in frame["message"]


def test_a_connection_that_rests_too_long_is_closed_and_counted_for_nobody(start: Callable[..., Service]) -> None:
    service = start(live_idle_seconds=1.0)
    with Live(service.url) as live:
        done(live)
        frame, code = live.last()
    assert (frame["code"], code) == ("idle_timeout", 1008)
    assert (ends(service, "done"), ends(service, "idle")) == (1, 0)


def test_nonsense_between_two_jobs_is_refused(service: Service) -> None:
    with Live(service.url) as live:
        done(live)
        live.send(type="end", index=0)
        assert live.last()[0]["code"] == "invalid_request"
    wait_for(lambda: ends(service, "refused") == 1)
