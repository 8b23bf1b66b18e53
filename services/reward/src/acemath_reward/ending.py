"""The end of a process whose engine will not compute again; whoever runs it starts it again."""

from __future__ import annotations

import logging
import os

_log = logging.getLogger(__name__)
EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h


def end_process(why: str) -> None:
    """End this process at once.

    Nothing is drained: what waits gets no score here, and its callers find another replica when their connections
    break. An orderly end would wait for the engine's thread, which may never come back.
    """
    _log.critical("%s; this process ends, to be started again", why)
    logging.shutdown()
    os._exit(EXIT_STATUS)
