from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_gateway.adapters.sse import SseError, SseReader

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(LINE, max_size=8), st.sampled_from(["\n", "\r\n"]), st.data())
def test_where_the_network_cuts_does_not_matter(texts: list[str], newline: str, data: st.DataObject) -> None:
    lines = [f"data: {text}{newline}: a comment{newline}event: x{newline}{newline}" for text in texts]
    whole = "".join(lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reader = SseReader()
    assert [event for piece in pieces for event in reader.feed(piece)] == texts


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_no_bytes_do_more_than_be_refused(chunks: list[bytes]) -> None:
    reader = SseReader(max_event_bytes=200)
    try:
        for chunk in chunks:
            assert all(isinstance(event, str) for event in reader.feed(chunk))
    except SseError:
        pass


def test_several_data_lines_are_one_event_and_an_unfinished_one_is_none() -> None:
    assert SseReader().feed(b"data: a\ndata:b\n\ndata: c\n") == ["a\nb"]


def test_what_is_kept_is_bounded() -> None:
    with pytest.raises(SseError):
        SseReader(max_event_bytes=10).feed(b"data: " + b"x" * 20)
