r"""Bring an answer into the one spelling that comparisons use.

After `strip_string` of the Qwen2.5-Math evaluation toolkit (units, `\text`, forms of `\frac`, percent, degrees,
leading `x=`, number words), with one difference: a percent sign is remembered, not forgotten, because 50 and 50 %
are the same answer and 50 and 0.5 without a percent sign are not.
"""

import re
from dataclasses import dataclass

from acemath_answers.numbers import parse_number, parse_number_word

MAX_ANSWER_CHARS = 2_000
"""An answer longer than this is compared as a string and never handed to a worker."""

_SAME_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2013\u2014\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f\u3000\x00\t\r\n\x0b\x0c", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00b0", ""),
        "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "/", "\u2044": "/", "\u2215": "/",
        "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4",
        "\u00b2": "^2", "\u00b3": "^3", "\uff0c": ",", "\uff05": "%",
    }
)  # fmt: skip
_SPACING = re.compile(r"\\[!,;:]|\\ |~|\\q?quad(?![a-zA-Z])")
_NO_MEANING = re.compile(r"\\(?:left|right|displaystyle|textstyle|limits)(?![a-zA-Z])|\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_FRACTION_FORMS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_BARE_ROOT = re.compile(r"\\sqrt ?([0-9a-zA-Z])")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}")
_TRAILING_UNIT = re.compile(r"\s([a-zA-Z/.() -]+)(?:\^\{?[23]\}?)?$")
_PERCENT = re.compile(r"\s*(?:\\?%|\bper ?cent(?:age)?)$", re.IGNORECASE)
_CURRENCY = re.compile(r"^([-+]?)\s*(?:\\?\$|[\u00a3\u20ac\u00a5])\s*")
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_ASSIGNMENT = re.compile(r"^[a-zA-Z][a-zA-Z0-9]?\s*=\s*(?=[^=]*$)")
_CHOICE = re.compile(r"\(?([A-Ea-e])\)?\.?")
_BARE_PI = re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])")
_FINAL_PUNCTUATION = (".", ",", ";", ":")
_SPACING_COMMANDS = ("\\,", "\\;", "\\:")
_SPACES = re.compile(r" {2,}")
_BLANK_WITHOUT_MEANING = re.compile(r"(?<![0-9a-zA-Z]) | (?![0-9a-zA-Z])")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
_DIGIT = re.compile(r"[0-9]")
_MAX_CHARS_WITH_UNIT = 200
_ONE_LETTER_UNITS = frozenset("mgshla")
_MEANINGFUL_WORDS = frozenset(
    [
        "and",
        "or",
        "to",
        "from",
        "plus",
        "minus",
        "times",
        "over",
        "mod",
        "of",
        "by",
        "half",
        "pi",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "log",
        "ln",
        "exp",
        "am",
        "pm",
        "a.m",
        "p.m",
        "noon",
        "thousand",
        "million",
        "billion",
        "trillion",
        "dozen",
    ]
)


@dataclass(frozen=True, slots=True)
class NormalisedAnswer:
    """An answer in its one spelling.

    `text` carries no unit, no percent sign, no thousands separator; `is_percent` says that a percent sign was there.
    """

    text: str
    is_percent: bool = False


def tidy(answer: str) -> str:
    """Take off what surrounds an answer in a sentence: blanks, `$`, `**`, a final stop or comma. For showing."""
    previous = None
    while answer != previous:
        previous = answer
        answer = answer.strip()
        while answer.endswith(_FINAL_PUNCTUATION) and not answer.endswith(_SPACING_COMMANDS):
            answer = answer[:-1].rstrip()
        for opening, closing in _DELIMITERS:
            inner = answer[len(opening) : len(answer) - len(closing)]
            if answer.startswith(opening) and answer.endswith(closing) and inner and opening not in inner:
                answer = inner
    return answer


def normalise(answer: str) -> NormalisedAnswer:
    """Return the one spelling of an answer; one longer than `MAX_ANSWER_CHARS` only loses surrounding blanks."""
    if len(answer) > MAX_ANSWER_CHARS:
        return NormalisedAnswer(answer.strip())
    text = _without_markup(tidy(answer.translate(_SAME_CHARACTERS)))
    text = _CURRENCY.sub(r"\1", _ASSIGNMENT.sub("", text))
    text, signs = _PERCENT.subn("", text)
    text = _without_unit(tidy(text.replace("\\$", "").replace("$", "")))
    text, signs_inside = _PERCENT.subn("", text)
    return NormalisedAnswer(_canonical(text) or answer.strip(), is_percent=bool(signs or signs_inside))


def _without_markup(text: str) -> str:
    text = _FRACTION_FORMS.sub(r"\\frac", _NO_MEANING.sub("", text)).replace("{,}", ",")
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _TEXT_COMMAND.sub(r" \1 ", _SPACING.sub("", text))
    return _SPACES.sub(" ", text).strip()


def _without_unit(text: str) -> str:
    """Drop trailing words after something with a digit, unless one of them changes the value ("2 million", "5 pm")."""
    unit = _TRAILING_UNIT.search(text) if len(text) <= _MAX_CHARS_WITH_UNIT else None
    value = text[: unit.start()].rstrip() if unit else ""
    if unit is None or not _DIGIT.search(value):
        return text
    words = unit.group(1).lower().replace("(", " ").replace(")", " ").split()
    letters = {word for word in words if len(word) == 1}
    are_units = letters <= _ONE_LETTER_UNITS and (not letters or parse_number(value) is not None)
    return value if words and are_units and not _MEANINGFUL_WORDS.intersection(words) else text


def _canonical(text: str) -> str:
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if choice := _CHOICE.fullmatch(text):
        return choice.group(1).upper()
    word = parse_number_word(text)
    if word is not None:
        return str(word)
    text = _BLANK_WITHOUT_MEANING.sub("", text)
    return text if parse_number(text) is not None else _BARE_PI.sub(r"\\pi", text)
