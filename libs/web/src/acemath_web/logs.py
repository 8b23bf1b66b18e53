"""One JSON object a line, with the request id; never a user's text, never a secret."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from acemath_web.context import current_request_id

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON line: time, level, logger, message, request id, and what `extra` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; values that are not JSON become text."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = current_request_id()
        if request_id:
            line["request_id"] = request_id
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """Send every logger's records to standard error as JSON lines; uvicorn's access log is ours to write."""
    # What no line of ours says is not looked up for each of them (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every URL at INFO
    for name in ("botocore", "urllib3"):  # at DEBUG they log credentials and signed requests
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
