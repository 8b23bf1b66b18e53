"""What can be decided about two answers without computer algebra, in microseconds.

Rules, after `grader.math_equal` of the Qwen2.5-Math evaluation toolkit, made safe for voting:

* equal spellings are equal; words and the letters A to E are compared ignoring case; two letters are two unknowns;
* numbers are compared exactly as fractions. The toolkit's relative tolerance of 1e-4 holds only where a side is
  written with a decimal point or an exponent: 10000 and 10001 are different answers, 3.1416 and 3.14159 are not;
* the toolkit's percentage rule (p, p/100 and 100p are the same) holds only where exactly one side carries a percent
  sign: 50 % equals 50 and 0.5, but 50 does not equal 0.5.
"""

import enum
import operator
import re
from dataclasses import dataclass
from fractions import Fraction

from acemath_answers.normalise import MAX_ANSWER_CHARS, normalise
from acemath_answers.numbers import PlainNumber, looks_like_a_huge_number, parse_number

RELATIVE_TOLERANCE = Fraction(1, 10_000)

_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]{2,}|no", re.IGNORECASE)
_LETTER = re.compile(r"[A-Za-z]")


class Verdict(enum.StrEnum):
    """The outcome of one comparison. Only EQUAL makes two answers the same; the others say why they are not."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNPARSABLE = "unparsable"
    """At least one side has no mathematical reading, and the spellings differ."""
    TOO_LONG = "too_long"
    """A side is longer than `MAX_ANSWER_CHARS`, and the spellings differ."""
    TIMEOUT = "timeout"
    """The worker did not decide in its time and was killed."""
    FAILED = "failed"
    """The worker died while comparing: out of memory, or killed from outside."""
    OVERLOADED = "overloaded"
    """No worker was free in time, or too many comparisons were waiting."""

    @property
    def is_equal(self) -> bool:
        """Whether the two answers are the same."""
        return self is Verdict.EQUAL

    @property
    def is_final(self) -> bool:
        """Whether asking again, on an idle machine, would bring the same verdict."""
        return self not in (Verdict.TIMEOUT, Verdict.FAILED, Verdict.OVERLOADED)


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer as the cheap path reads it; made once for each answer, then compared many times."""

    text: str
    is_percent: bool
    number: PlainNumber | None
    is_words: bool
    is_too_long: bool
    is_huge_number: bool


def read(answer: str) -> Reading:
    """Normalise an answer and find out what kind it is."""
    too_long = len(answer) > MAX_ANSWER_CHARS
    normalised = normalise(answer)
    number = parse_number(normalised.text)
    return Reading(
        text=normalised.text,
        is_percent=normalised.is_percent,
        number=number,
        is_words=not too_long and _WORDS.fullmatch(normalised.text) is not None,
        is_too_long=too_long,
        is_huge_number=not too_long and number is None and looks_like_a_huge_number(normalised.text),
    )


def compare_cheaply(a: str, b: str) -> Verdict | None:
    """Return the verdict on two answers if the rules above decide it, else None. Symmetric; raises nothing."""
    return compare_readings(read(a), read(b))


def compare_readings(a: Reading, b: Reading) -> Verdict | None:
    """`compare_cheaply` on answers that were read before."""
    if a.text == b.text:
        return Verdict.EQUAL
    if not (a.text and b.text) or a.is_huge_number or b.is_huge_number:
        return Verdict.UNPARSABLE
    if a.is_too_long or b.is_too_long:
        return Verdict.TOO_LONG
    if a.number is not None and b.number is not None:
        return _verdict(_same_number(a, b))
    if _LETTER.fullmatch(a.text) and _LETTER.fullmatch(b.text):
        return Verdict.DIFFERENT
    if a.is_words and b.is_words:
        return _verdict(a.text.casefold() == b.text.casefold())
    if (a.is_words and b.number is not None) or (b.is_words and a.number is not None):
        return Verdict.DIFFERENT
    return None


def within_tolerance(a: Fraction, b: Fraction) -> bool:
    """Whether two numbers differ by at most 1e-4 of the larger (as `math.isclose` takes it)."""
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def _verdict(equal: bool) -> Verdict:
    return Verdict.EQUAL if equal else Verdict.DIFFERENT


def _same_number(a: Reading, b: Reading) -> bool:
    assert a.number and b.number, "compare_readings asks only about numbers"
    close = within_tolerance if a.number.may_be_rounded or b.number.may_be_rounded else operator.eq
    if close(a.number.value, b.number.value):
        return True
    if a.is_percent == b.is_percent:
        return False
    percent, plain = (a.number, b.number) if a.is_percent else (b.number, a.number)
    return close(percent.value / 100, plain.value)
