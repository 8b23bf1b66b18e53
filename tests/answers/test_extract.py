from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_answers import MAX_ANSWER_CHARS, ends_in_box, extract_answer, extract_boxed, extract_choice

BALANCED = st.recursive(
    st.text(alphabet="0123456789abcxyz+-*/^_=()", min_size=1, max_size=8),
    lambda inner: st.lists(st.one_of(inner, inner.map(lambda s: "{" + s + "}")), min_size=1, max_size=4).map("".join),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{5}$.", "5"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\frac{1}{\sqrt{2}}} is it", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right"),
        (r"\boxed  {5}", "5"),
        (r"\boxed 5$", "5"),
        (r"\boxed{5", "5"),
        ("\\boxed{5 + 3\nwe were cut off", "5 + 3"),
        (r"\boxed{18} or \boxed{", "18"),
        (r"\boxed{} so 12", "12"),
        ("The final answer is $x^2$. I hope it is correct. 99", "x^2"),
        ("The answer is 18 dollars. She has 3 left", "18 dollars"),
        ("The answer is: **18**.", "18"),
        ("My final answer is 3.5", "3.5"),
        ("She makes 9 * 2 = $18 a day", "18"),
        ("#### 1,234", "1234"),
        ("it is -5.", "-5"),
        ("it is \u22125.", "-5"),
        ("10-3", "3"),
        ("exactly 3/4 of it", "3/4"),
        ("0.5.", "0.5"),
        (".25", ".25"),
        ("1,23456", "23456"),
        ("no number here", None),
        ("", None),
    ],
)
def test_free_form(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_the_order_of_the_rules() -> None:
    text = r"The answer is 3. final answer is 2. \boxed{1}. The final answer is $0$. I hope it is correct. 9"
    assert extract_answer(text) == "0"
    assert extract_answer(text.replace(". I hope", "")) == "1"
    assert extract_answer(r"The answer is 3. My final answer: is 2. 9") == "3"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{5", None),
        ("the answer is 5", None),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{}", None),
    ],
)
def test_strict_mode_wants_a_closed_box(text: str, answer: str | None) -> None:
    assert extract_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{C}", "C"),
        (r"so \boxed{\text{(D) 5}}", "D"),
        ("The answer is (B) because A is wrong", "B"),
        ("Best choice is A.", "A"),
        ("A, B ... I take D", "D"),
        ("42", None),
    ],
)
def test_multiple_choice(text: str, letter: str | None) -> None:
    assert extract_choice(text) == letter


@given(st.text(max_size=50), BALANCED, st.text(alphabet="abc \n.$", max_size=30))
def test_what_was_put_into_the_box_comes_out(before: str, content: str, after: str) -> None:
    text = before + "\\boxed{" + content + "}" + after
    assert extract_boxed(text) == content
    if "final answer is $" not in before:
        assert extract_answer(text) == content


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\\boxed{}$.,:/ 0123456789\x00\ud800"))))
def test_no_text_raises(text: str) -> None:
    for extract in (extract_answer, extract_boxed, extract_choice):
        answer = extract(text)
        assert answer is None or 0 < len(answer) <= MAX_ANSWER_CHARS


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "\\boxed",
        "{",
        "}",
        "a{",
        "$",
        "1",
        "1 ",
        "-",
        ".",
        ",",
        " ",
        "\n",
        "the answer is ",
        "A ",
        "\\fbox{{}",
        "/1",
    ],
)
def test_a_megabyte_takes_milliseconds(piece: str) -> None:
    text = r"\boxed{" * 8 + piece * (1_000_000 // len(piece))
    start = time.process_time()
    extract_answer(text)
    extract_boxed(text)
    extract_choice(text)
    assert time.process_time() - start < 1.0  # about 0.03 s; a quadratic rule would take minutes


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("it is \\bo", True),
        ("it is \\boxed", True),
        ("it is \\boxed{", True),
        ("it is \\boxed{\\frac{1}{2}", True),
        ("\\boxed{1} and \\boxed{2", True),
        ("it is \\boxed{2}", False),
        ("it is \\boxed 5", False),
        ("it is 5 \\", False),
        ("it is \\frac", False),
        ("", False),
    ],
)
def test_a_text_that_ends_inside_its_box(text, inside):
    assert ends_in_box(text) is inside
