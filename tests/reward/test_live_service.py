"""`WS /v1/score/live` under bad luck and bad will. A model of microseconds."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from reward.live_client import MESSAGES, Live
from reward.live_world import Service
from reward.serving import wait_for
from websockets.exceptions import InvalidStatus

from acemath_prompts import PromptEncoder
from acemath_web.draining import DrainingServer


def test_closing_frees_memory_and_queue(service: Service) -> None:
    service.model.hold.clear()
    with Live(service.url) as live:
        for index in range(20):
            live.write(index, ["Tom has 3 apples and buys 4 more. " * 3], end=index % 2 == 0)
        wait_for(lambda: service.metric("live_pieces_total") == 20)
        assert service.held() > 20
    wait_for(lambda: service.metric("live_sessions") == 0)
    service.model.hold.set()
    wait_for(lambda: service.held() == 0)
    wait_for(lambda: service.metric('scored_candidates_total{result="cancelled"}') == 20)
    wait_for(lambda: service.metric('live_ends_total{reason="closed"}') == 1)


def test_an_idle_connection_is_closed_and_one_that_waits_for_a_score_is_not(start: Callable[..., Service]) -> None:
    service = start(live_idle_seconds=1.0)
    with Live(service.url) as idle:
        frame, code = idle.last()
        assert (frame["code"], code) == ("idle_timeout", 1008)
    with Live(service.url, opened=False) as silent:
        assert silent.last()[0]["code"] == "idle_timeout"
    service.model.hold.clear()
    with Live(service.url) as waiting:
        waiting.write(0, ["7"])
        threading.Timer(2.5, service.model.hold.set).start()
        assert waiting.scores(1)[0]["index"] == 0


def test_a_deadline_ends_a_connection(service: Service) -> None:
    with Live(service.url, deadline=1.5) as live:
        live.write(0, ["Tom "], end=False)
        frame, code = live.last()
    assert (frame["code"], code) == ("deadline_exceeded", 1008)
    wait_for(lambda: service.held() == 0)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("", "invalid_request", None),
        ("null", "invalid_request", None),
        ("[" * 100_000, "invalid_request", None),
        ('{"type": "close"}', "invalid_request", None),
        ('{"type": "open", "messages": []}', "invalid_request", "type"),
        ('{"type": "piece", "index": 0, "text": "x", "weight": 3}', "unsupported_parameter", "weight"),
        ('{"type": "piece", "index": 0}', "invalid_request", None),
        ('{"type": "piece", "index": 0, "text": "x", "token_ids": [5]}', "invalid_request", None),
        ('{"type": "piece", "index": "0", "text": "x"}', "invalid_request", "index"),
        ('{"type": "piece", "index": -1, "text": "x"}', "invalid_request", "index"),
        ('{"type": "piece", "index": 1e99, "text": "x"}', "invalid_request", "index"),
        ('{"type": "piece", "index": 256, "text": "x"}', "invalid_request", "index"),
        ('{"type": "piece", "index": 0, "text": "\\ud800", "weight": 3}', "invalid_request", None),
        ('{"type": "piece", "index": "0", "text": "\\ud800"}', "invalid_request", "index"),
        ('{"type": "open", "messages": [{"role": "user", "content": "\\udc00"}]}', "invalid_request", None),
        ("[" * 100_000 + '"\\ud800"', "invalid_request", None),
        ('{"type": "piece", "index": 0, "token_ids": []}', "invalid_request", "token_ids"),
        ('{"type": "piece", "index": 0, "token_ids": [true]}', "invalid_request", "token_ids.0"),
        ('{"type": "end", "index": 7}', "invalid_request", "index"),
        ('{"type": "end", "index": 9}', "invalid_request", "index"),
        ('{"type": "piece", "index": 9, "text": "more"}', "invalid_request", "index"),
        (b"\x00\xff", "invalid_request", None),
    ],
)
def test_a_bad_frame_ends_its_own_connection_only(
    service: Service, message: str | bytes, code: str, param: str | None
) -> None:
    with Live(service.url) as good, Live(service.url) as bad:
        bad.write(9, ["7"])
        bad.scores(1)
        bad.connection.send(message)
        frame, closed = bad.last()
        assert frame["code"] == code and closed == 1008 and frame["message"], frame
        if param is not None and "open" not in str(message):
            assert frame["param"] == param
        good.write(0, ["7"])
        assert good.scores(1)


@pytest.mark.parametrize(
    ("opening", "code", "closed"),
    [
        ({"type": "piece", "index": 0, "text": "x"}, "invalid_request", 1008),
        ({"type": "open", "messages": []}, "invalid_request", 1008),
        ({"type": "open", "messages": [{"role": "assistant", "content": "x"}]}, "invalid_request", 1008),
        ({"type": "open", "messages": MESSAGES, "deadline": -1}, "invalid_request", 1008),
        ({"type": "open", "messages": MESSAGES, "problem": "x"}, "unsupported_parameter", 1008),
        ({"type": "open", "messages": MESSAGES, "model": "rew@s9-ffffffffffff"}, "model_not_served", 1008),
        ({"type": "open", "messages": [{"role": "user", "content": "x " * 400}]}, "context_length_exceeded", 1008),
        ({"type": "open", "messages": [{"role": "user", "content": "x" * 140_000}]}, "request_too_large", 1008),
    ],
)
def test_a_bad_opening_is_refused(service: Service, opening: dict[str, Any], code: str, closed: int) -> None:
    with Live(service.url, opened=False) as live:
        live.send(**opening)
        frame, close_code = live.last()
    assert (frame["code"], close_code) == (code, closed)
    wait_for(lambda: service.held() == 0)


TORN = [["\ud83d"], ["7", "\ud83d"], ["\ude42"], ["\ud83d", "7"], ["a\ud83d\ud83d", "\ude42"], ["\ude42\ud83d"]]


@pytest.mark.parametrize("pieces", [[[5, 1, 6]], [[2], [5]], [[384]], [[10**30]], ["a ", [5]], [[5], "a"], *TORN])
def test_a_bad_candidate_fails_alone(service: Service, pieces: list[Any]) -> None:
    with Live(service.url) as live:
        live.write(0, pieces)
        frame = live.receive()
        assert (frame["type"], frame["index"], frame["code"]) == ("error", 0, "invalid_request")
        if pieces in TORN:
            assert frame["param"] == "text" and "candidate 0" in frame["message"] and "surrogate" in frame["message"]
        live.write(1, ["7"])
        assert live.scores(1)[1]


def test_buffers_are_bounded(start: Callable[..., Service]) -> None:
    service = start(live_content_bytes=2048, live_candidates=2, max_text_chars=1000)
    with Live(service.url) as live:
        live.write(0, ["x" * 1001], end=False)
        assert live.receive()["code"] == "request_too_large"
        live.write(1, ["🙂" * 300], end=False)
        frame, code = live.last()
    assert (frame["code"], code) == ("request_too_large", 1008)


def test_the_key_is_asked_for_before_the_handshake_ends(start: Callable[..., Service]) -> None:
    service = start(key="k" * 32)
    for key in (None, "wrong"):
        with pytest.raises(InvalidStatus) as refused:
            Live(service.url, key=key)
        assert refused.value.response.status_code in (401, 403)
    with Live(service.url, key="k" * 32) as live:
        live.write(0, ["7"])
        assert live.scores(1)


def test_a_reader_that_does_not_read_harms_nobody(service: Service) -> None:
    with Live(service.url) as slow, Live(service.url) as quick:
        for index in range(200):
            slow.write(index, ["7"])
        quick.write(0, ["7"])
        assert quick.scores(1)
        assert len(slow.scores(200)) == 200, "bounded, and there when they are read"


def test_a_failing_pass_takes_only_its_own_connection(service: Service, llama: Path) -> None:
    seven, eight = (ids_of(llama, text) for text in ("7", "8"))
    (service.model.poison,) = eight - seven
    service.model.hold.clear()
    with Live(service.url) as good, Live(service.url) as bad:
        good.write(0, ["7"])
        bad.write(0, ["8"])
        wait_for(lambda: service.metric("live_pieces_total") == 2)
        service.model.hold.set()
        scored, failed = good.receive(), bad.receive()
    assert (failed["type"], failed["code"], failed["index"]) == ("error", "internal_error", None)
    assert (scored["type"], scored["index"]) == ("score", 0)


def ids_of(checkpoint: Path, text: str) -> set[int]:
    """The ids of a conversation that ends in this answer."""
    encoder = PromptEncoder.from_directory(checkpoint)
    return set(encoder.encode_conversation([{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]))


def test_a_stopping_server_gives_connections_time_and_then_tells_them(service: Service) -> None:
    config = uvicorn.Config(service.app, log_config=None, lifespan="off", timeout_graceful_shutdown=3)
    server = DrainingServer(config, service.app.state.drain)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Live(url) as live, Live(url) as resting:
            resting.send(type="done")
            assert resting.receive() == {"type": "done"}
            live.write(0, ["Tom "], end=False)
            wait_for(lambda: service.metric("live_pieces_total") == 1)
            server.should_exit = True  # what the handler of SIGTERM does
            live.write(1, ["7"])
            assert live.scores(1)[1], "it has time to finish"
            frame, code = live.last()
            assert (frame["code"], code) == ("draining", 1001)
            frame, code = resting.last()
            assert (frame["code"], code) == ("draining", 1001)
        thread.join(30)
        assert not thread.is_alive()
    with Live(service.url) as late:
        assert late.last()[0]["code"] == "draining"


def test_a_frame_in_json_of_any_shape_is_read(service: Service) -> None:
    with Live(service.url, opened=False) as live:
        live.connection.send(
            json.dumps({"deadline": 60, "messages": MESSAGES, "type": "open", "model": None}, indent=4)
        )
        live.write(0, ["7"])
        assert live.scores(1)
