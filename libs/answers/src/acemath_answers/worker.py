"""One worker process: reads comparisons from a pipe, answers with verdicts, may be killed at any moment.

Started as `python -m acemath_answers.worker FD MEMORY_BYTES SECONDS`. It holds nothing worth keeping. It never
outlives its parent: it ends when the pipe closes, and a timer of its own kills it if a comparison runs on after that.
"""

import json
import logging
import resource
import signal
import sys
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic

from acemath_answers.compare import RELATIVE_TOLERANCE, Verdict
from acemath_answers.normalise import normalise
from acemath_answers.numbers import parse_number

_PARSED_KEPT = 256
_GRACE_SECONDS = 2.0
_PROBE = "7"


@lru_cache(maxsize=_PARSED_KEPT)
def _parsed(text: str) -> tuple[Any, ...]:
    """Return math-verify's readings of a normalised answer; empty if none. Its own time-outs (signals) are off."""
    extraction = [LatexExtractionConfig(boxed_match_priority=-1), ExprExtractionConfig()]
    return tuple(parse(f"${text}$", extraction, fallback_mode="no_fallback", parsing_timeout=None))


def probe(answer: str) -> Verdict:
    """Return EQUAL if the answer has a mathematical reading that can be evaluated, else UNPARSABLE.

    It is compared once, with a number: 9^{9^{9^9}} parses in a millisecond and hangs when its value is asked for.
    """
    readings = _parsed(normalise(answer).text)
    if not readings:
        return Verdict.UNPARSABLE
    verify(list(readings), list(_parsed(_PROBE)), timeout_seconds=None)
    return Verdict.EQUAL


def compare(a: str, b: str) -> Verdict:
    """Return EQUAL, DIFFERENT or UNPARSABLE; symmetric in a and b, which math-verify by itself is not."""
    left, right = (_parsed(normalise(answer).text) for answer in (a, b))
    if not (left and right):
        return Verdict.UNPARSABLE
    return Verdict.EQUAL if _same(left, right) or _close(a, b, left, right) else Verdict.DIFFERENT


def _same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return any(
        verify(list(gold), list(target), timeout_seconds=None) for gold, target in ((left, right), (right, left))
    )


def _close(a: str, b: str, left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    r"""Apply the relative tolerance where one side is a rounded decimal and the other a constant (1.4142, \sqrt{2})."""
    numbers = [parse_number(normalise(answer).text) for answer in (a, b)]
    if not any(number is not None and number.may_be_rounded for number in numbers):
        return False
    x, y = left[0], right[0]
    if not (isinstance(x, Basic) and isinstance(y, Basic) and x.is_number and y.is_number):
        return False
    x, y = complex(x.evalf(15)), complex(y.evalf(15))
    return abs(x - y) <= float(RELATIVE_TOLERANCE) * max(abs(x), abs(y))


def _answer(request: list[str]) -> Verdict:
    try:
        return probe(request[0]) if len(request) == 1 else compare(*request)
    except MemoryError:
        raise
    except Exception:  # sympy raises what it likes; an answer it cannot handle has no reading
        return Verdict.UNPARSABLE


def _limit_resources(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> None:
    """Serve until the pipe closes. Running out of memory ends the process: the parent sees it and starts another."""
    descriptor, memory_bytes, timeout_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    logging.disable(logging.CRITICAL)
    _limit_resources(memory_bytes)
    compare("x+1", "1+x")  # sympy imports much of itself at the first use
    with Connection(descriptor) as pipe:
        pipe.send_bytes(b"ready")
        while True:
            try:
                request = json.loads(pipe.recv_bytes())
            except EOFError:
                return
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _GRACE_SECONDS)
            verdict = _answer(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send_bytes(verdict.value.encode())


if __name__ == "__main__":
    main()
