"""A request's line in the log says what was asked for and what answered it, and nothing of the problem."""

import logging

import pytest

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
