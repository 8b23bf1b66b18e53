"""Log lines."""

from __future__ import annotations

import json
import logging

from acemath_web.logs import JsonFormatter


def test_a_log_line_is_json_with_its_extras() -> None:
    record = logging.makeLogRecord(
        {"name": "a", "levelname": "INFO", "msg": "took %s", "args": ("1 s",), "release": "r1"}
    )
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["release"], line["level"]) == ("took 1 s", "r1", "info")
