"""Why a program ended, out of the end of what it printed."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LENGTH = 300  # characters of a line
_WHO = re.compile(r"^\([^()]* pid=\d+\) ?")  # vLLM's processes put themselves before each line


def last_words(lines: Iterable[str]) -> str:
    """The last line that names an error, with the indented one that explains it; else the last line.

    Args:
        lines: the end of a program's output.
    """
    tail = [_WHO.sub("", line) for line in lines if line.strip()]
    place = max((i for i, line in enumerate(tail) if "Error" in line), default=len(tail) - 1)
    found = [line.strip()[:_LENGTH] for line in tail[place : place + 1]]
    found += [line.strip()[:_LENGTH] for line in tail[place + 1 : place + 2] if line[0].isspace()]
    return ": ".join(found) or "no output"
