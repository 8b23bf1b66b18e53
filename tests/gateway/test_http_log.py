"""A request's line in the log says what was asked for and what answered it, and nothing of the problem."""

import logging

import pytest

from acemath_core.errors import ErrorCode, Unavailable
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client
from doubles.ports import TARGET

CHAT = {"model": "acemath", "messages": [{"role": "user", "content": PROBLEM}], "best_of": 3}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/solve", {"problem": PROBLEM, "n": 3}), ("/v1/chat/completions", CHAT)]
)
async def test_the_line_names_the_release_and_the_counts(caplog, path, body, stream):
    caplog.set_level(logging.INFO, logger="acemath_web.access")
    async with gateway_client(GatewayOnDoubles()) as http:
        assert (await http.post(path, json=body | {"stream": stream})).status_code == 200
    (line,) = [record for record in caplog.records if getattr(record, "route", None) == path]
    facts = {"n": 3, "stream": stream, "release": TARGET.release, "n_scored": 3, "stop_reason": "complete"}
    assert {name: getattr(line, name) for name in facts} == facts
    assert line.degraded_reason is None
    assert PROBLEM not in str(line.__dict__)


async def test_what_fails_in_mid_stream_has_its_code_in_the_line(caplog):
    caplog.set_level(logging.INFO, logger="acemath_web.access")
    gateway = GatewayOnDoubles()
    gateway.scorer.error = Unavailable("gone", code=ErrorCode.REWARD_UNAVAILABLE)
    gateway.policy.token_seconds = 0.01
    async with gateway_client(gateway) as http:
        assert (await http.post("/v1/solve", json={"problem": PROBLEM, "n": 3, "stream": True})).status_code == 200
    (line,) = [record for record in caplog.records if getattr(record, "route", None) == "/v1/solve"]
    assert (line.status, line.stream_error) == (200, "reward_unavailable")
