"""Log lines."""

from __future__ import annotations

import json
import logging

import pytest

from acemath_web.logs import JsonFormatter, configure_logging


def test_a_log_line_is_json_with_its_extras() -> None:
    record = logging.makeLogRecord(
        {"name": "a", "levelname": "INFO", "msg": "took %s", "args": ("1 s",), "release": "r1"}
    )
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["release"], line["level"]) == ("took 1 s", "r1", "info")


@pytest.mark.parametrize(("level", "least"), [("debug", logging.INFO), ("warning", logging.WARNING)])
def test_who_logs_credentials_at_debug_does_not_log_at_debug(
    monkeypatch: pytest.MonkeyPatch, level: str, least: int
) -> None:
    loggers = [logging.getLogger(name) for name in ("botocore", "urllib3")]
    root = logging.getLogger()
    for logger in (root, *loggers):
        monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(root, "handlers", [])
    configure_logging(level)
    assert [logger.getEffectiveLevel() for logger in loggers] == [least, least]
    assert not logging.getLogger("botocore.auth").isEnabledFor(logging.DEBUG)
