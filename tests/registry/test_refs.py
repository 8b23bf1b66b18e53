import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_registry import InvalidRequest, ModelRef
from acemath_registry.refs import MAX_NAME_LENGTH, check_name, check_release_id


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}(\.[0-9]{1,3})?", fullmatch=True), st.integers(0, 10**9))
def test_text_and_back(name: str, step: int) -> None:
    ref = ModelRef(name, f"s{step}-0123456789ab")
    assert ModelRef.parse(str(ref)) == ref
    assert ref.step == step


@pytest.mark.parametrize(
    "text",
    ["", "pol", "pol@", "@s1-0123456789ab", "pol@latest", "pol@s1-0123", "pol@s01-0123456789ab", "pol@s1-0123456789AB",
     "../pol@s1-0123456789ab", "a/b@s1-0123456789ab", ".pol@s1-0123456789ab", "a..b@s1-0123456789ab",
     "pol\n@s1-0123456789ab", "pol@s1-0123456789ab\n", "pol@s-1-0123456789ab", "a" * 97 + "@s1-0123456789ab"],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidRequest):
        ModelRef.parse(text)


@given(st.text(max_size=MAX_NAME_LENGTH + 5))
def test_a_name_is_always_one_harmless_path_segment(text: str) -> None:
    try:
        check_name(text, what="name")
    except InvalidRequest:
        return
    assert (
        "/" not in text
        and "\\" not in text
        and ".." not in text
        and not text.startswith((".", "-"))
        and text.isprintable()
    )
    assert text.isascii() and 1 <= len(text) <= MAX_NAME_LENGTH


@pytest.mark.parametrize("text", ["", "r-", "r-0123456789AB", "../r-0123456789ab", "r-0123456789ab.json"])
def test_what_is_no_release_id(text: str) -> None:
    with pytest.raises(InvalidRequest):
        check_release_id(text)
