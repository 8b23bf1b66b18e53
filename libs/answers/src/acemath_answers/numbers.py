r"""Read plain numbers exactly: integers, decimals, fractions, mixed numbers, scientific notation, number words.

Anything longer than `MAX_DIGITS` digits or with an exponent beyond `MAX_EXPONENT` is not a plain number here:
`1e999999999` must never become an integer of a billion digits.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 400
MAX_EXPONENT = 300

_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_SCIENTIFIC = re.compile(
    r"([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE]| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?)(\{?)([-+]?[0-9]+)(\}?)"
)
_RATIO = re.compile(r"([-+]?) ?([0-9]+) ?/ ?([0-9]+)")
_FRAC = re.compile(r"([-+]?) ?\\frac ?\{ ?([-+]?[0-9]+) ?\} ?\{ ?([0-9]+) ?\}")
_FRAC_DIGITS = re.compile(r"([-+]?) ?\\frac ?([0-9]) ?([0-9])")
_MIXED = re.compile(r"([-+]?) ?([0-9]+) ([0-9]+) ?/ ?([0-9]+)")
_MIXED_FRAC = re.compile(r"([-+]?) ?([0-9]+) ?\\frac ?\{ ?([0-9]+) ?\} ?\{ ?([0-9]+) ?\}")
_SCALED = re.compile(r"([-+]?[0-9]+(?:\.[0-9]*)?) (thousand|million|billion|trillion|dozen)s?(?: [a-zA-Z ]+)?", re.I)
_DIGIT = re.compile(r"[0-9]")

_SCALES = {"dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TEN_NAMES = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TENS = {word: 10 * n for n, word in enumerate(_TEN_NAMES, 2)}
_WORDS = {word: n for n, word in enumerate(_SMALL)} | _TENS


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """An exact value, and whether it was written in a way that may be rounded (with a decimal point or exponent)."""

    value: Fraction
    may_be_rounded: bool


def parse_number(text: str) -> PlainNumber | None:
    """Return the number that the whole text spells, or None. Blanks around it are not accepted."""
    if not text or len(text) > MAX_DIGITS:
        return None
    for pattern, read in _READERS:
        if match := pattern.fullmatch(text):
            return read(match)
    return None


def looks_like_a_huge_number(text: str) -> bool:
    """Say whether the text is a decimal or scientific literal that `parse_number` refuses for its size."""
    literal = _DECIMAL.fullmatch(text) or _SCIENTIFIC.fullmatch(text)
    return literal is not None and parse_number(text) is None


def parse_number_word(text: str) -> int | None:
    """Return the number from zero to ninety-nine that the text spells in words ("twenty-one"), or None."""
    if len(text) > 20 or _DIGIT.search(text):
        return None
    parts = text.lower().replace("-", " ").split()
    if len(parts) == 1:
        return _WORDS.get(parts[0])
    is_compound = len(parts) == 2 and parts[0] in _TENS and 0 < _WORDS.get(parts[1], 0) < 10
    return _TENS[parts[0]] + _WORDS[parts[1]] if is_compound else None


def _read_decimal(match: re.Match[str]) -> PlainNumber:
    return PlainNumber(Fraction(match.group()), may_be_rounded="." in match.group())


def _read_scientific(match: re.Match[str]) -> PlainNumber | None:
    mantissa, opening, exponent, closing = match.groups()
    balanced = bool(opening) == bool(closing)
    if not balanced or len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return PlainNumber(Fraction(mantissa) * Fraction(10) ** int(exponent), may_be_rounded=True)


def _read_fraction(match: re.Match[str]) -> PlainNumber | None:
    sign, *parts = match.groups()
    whole, numerator, denominator = (int(part) for part in ["0", *parts][-3:])
    if denominator == 0:
        return None
    value = whole + Fraction(numerator, denominator)
    return PlainNumber(-value if sign == "-" else value, may_be_rounded=False)


def _read_scaled(match: re.Match[str]) -> PlainNumber:
    factor = _SCALES[match.group(2).lower()]
    return PlainNumber(Fraction(match.group(1)) * factor, may_be_rounded="." in match.group(1))


_READERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], PlainNumber | None]], ...] = (
    (_DECIMAL, _read_decimal),
    (_SCIENTIFIC, _read_scientific),
    (_RATIO, _read_fraction),
    (_FRAC, _read_fraction),
    (_FRAC_DIGITS, _read_fraction),
    (_MIXED, _read_fraction),
    (_MIXED_FRAC, _read_fraction),
    (_SCALED, _read_scaled),
)
