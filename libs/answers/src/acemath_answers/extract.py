r"""Find the final answer in the text of a solution.

The order is that of the Qwen2.5-Math evaluation toolkit (`parser.extract_answer`), by which AceMath was measured:
Minerva's "final answer is $…$. I hope", the last `\boxed{}`, "he answer is", "final answer is", the last number.
Every function is linear in the length of its text and raises nothing on any text.
"""

import re
from collections import deque

from acemath_answers.normalise import MAX_ANSWER_CHARS, tidy

_BOX_COMMANDS = ("\\boxed", "\\fbox")
_MAX_BOXES_TRIED = 8
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BLANKS = re.compile(r"\s*")
_TOKEN_END = re.compile(r"[\s$,;]")
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-\u2212])?"
    r"(?:[0-9]+(?:,[0-9]{3})*(?![0-9])(?:\.[0-9]+|/[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_CHOICE = re.compile(r"(?<![A-Za-z0-9])\(?([A-E])\)?(?![A-Za-z0-9])")
_ANSWER_PHRASES = ("he answer is", "final answer is")
_CHOICE_PHRASES = ("answer is", "choice is")


def extract_answer(text: str) -> str | None:
    r"""Return the final answer of a free-form solution, or None if there is none.

    Rules, first hit wins: "final answer is $…$. I hope"; the last `\boxed{}` or `\fbox{}` by brace matching (the
    innermost of nested ones; a box the text ends in before closing counts up to the end of its line); the sentence
    after the last "he answer is", then "final answer is"; the last number (`3/4` is one number). The answer is
    tidied (`normalise.tidy`), not normalised: it is what a person is shown. An answer of more than
    `MAX_ANSWER_CHARS` characters is none.
    """
    for rule in (_minerva_answer, _boxed_answer, _stated_answer, _last_number):
        if found := rule(text):
            return found if len(found) <= MAX_ANSWER_CHARS else None
    return None


def ends_in_box(text: str) -> bool:
    r"""Whether the text ends inside its last box, or inside the very command of one (`\bo`).

    So does a text that was cut off, by a length or a stop text. `extract_answer` takes what such a box holds, as the
    toolkit does; who knows that half an answer is worse than none asks this first.
    """
    command = text[text.rfind("\\") :] if "\\" in text else ""
    if len(command) > 1 and any(name.startswith(command) for name in _BOX_COMMANDS):
        return True
    _, opening = _last_box(text, len(text))
    return opening >= 0 and text[opening : opening + 1] in ("{", "") and _braced(text, opening) is None


def extract_boxed(text: str) -> str | None:
    r"""Return the tidied content of the last *closed* `\boxed{}` or `\fbox{}`, or None (the strict mode).

    Only the last box counts: if it is unclosed, empty or longer than `MAX_ANSWER_CHARS` there is no answer.
    """
    _, opening = _last_box(text, len(text))
    content = _braced(text, opening) if opening >= 0 else None
    return tidy(content) or None if content is not None else None


def extract_choice(text: str) -> str | None:
    r"""Return the letter A to E that answers a multiple-choice question, or None.

    The letter in the last `\boxed{}` counts first; then the first stand-alone letter after the last "answer is" or
    "choice is"; then the last stand-alone letter of the text. (The toolkit takes the box only for free-form sets;
    AceMath's policy is asked for a box in every set.)
    """
    boxed = extract_boxed(text)
    if boxed and (letter := _CHOICE.search(boxed)):
        return letter.group(1)
    for phrase in _CHOICE_PHRASES:
        tail = text.rpartition(phrase)
        if tail[1] and (letter := _CHOICE.search(tail[2])):
            return letter.group(1)
    letters = deque(_CHOICE.finditer(text), maxlen=1)
    return letters[0].group(1) if letters else None


def _minerva_answer(text: str) -> str | None:
    start = text.rfind("final answer is $")
    if start < 0:
        return None
    answer, phrase, _ = text[start + len("final answer is $") :][: MAX_ANSWER_CHARS + 20].partition("$. I hope")
    return tidy(answer) if phrase else None


def _boxed_answer(text: str) -> str | None:
    end = len(text)
    for _ in range(_MAX_BOXES_TRIED):  # few, so that a text of nothing but unclosed boxes stays cheap
        end, opening = _last_box(text, end)
        if opening < 0:
            return None
        content = _braced(text, opening)
        if content is None:
            content = _unclosed(text, opening)
        if (tidied := tidy(content)) and not tidied.startswith(_BOX_COMMANDS):
            return tidied
    return None


def _stated_answer(text: str) -> str | None:
    for phrase in _ANSWER_PHRASES:
        _, found, tail = text.rpartition(phrase)
        if not found:
            continue
        sentence = tail[: 2 * MAX_ANSWER_CHARS].lstrip(" \t\n:")
        end = _SENTENCE_END.search(sentence)
        answer = tidy(sentence[: end.start()] if end else sentence)
        if any(character.isalnum() for character in answer):
            return answer
    return None


def _last_number(text: str) -> str | None:
    last_digit = max(text.rfind(digit) for digit in "0123456789")
    start = max(0, last_digit - MAX_ANSWER_CHARS)
    numbers = deque(_NUMBER.finditer(text, start, last_digit + 1), maxlen=1)
    if not numbers or (start and numbers[0].start() == start):  # the latter goes on to the left: no answer's length
        return None
    return tidy(numbers[0].group().replace(",", "").replace("\u2212", "-"))


def _last_box(text: str, end: int) -> tuple[int, int]:
    """Return where the last box command before `end` starts and where its content opens; -1 for both if none."""
    position, command = max((text.rfind(command, 0, end), command) for command in _BOX_COMMANDS)
    if position < 0:
        return -1, -1
    blanks = _BLANKS.match(text, position + len(command))
    return position, blanks.end() if blanks else position + len(command)


def _braced(text: str, opening: int) -> str | None:
    r"""Return what the braces opening at `opening` hold, or None if they do not close within an answer's length.

    An escaped brace (`\{`) does not count.
    """
    if text[opening : opening + 1] != "{":
        return None
    depth = 0
    for brace in _BRACE.finditer(text, opening, opening + MAX_ANSWER_CHARS + 2):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[opening + 1 : brace.start()]
    return None


def _unclosed(text: str, opening: int) -> str:
    r"""Return what a box holds that never closes: the rest of its line; for `\boxed 5` the next token."""
    if text[opening : opening + 1] != "{":
        return _TOKEN_END.split(text[opening : opening + MAX_ANSWER_CHARS], maxsplit=1)[0]
    rest = text[opening + 1 : opening + MAX_ANSWER_CHARS + 2].partition("\n")[0]
    return rest if len(rest) <= MAX_ANSWER_CHARS else ""
