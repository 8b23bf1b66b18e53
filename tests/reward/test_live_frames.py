"""Messages of `WS /v1/score/live`: a frame, or a list of frames that is as good as each alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.errors import InvalidRequest
from acemath_reward.live.frames import Partial, Piece, Score, ServerFrame, message_of, read_frames

# Also halves of surrogate pairs: where pieces meet, one may be split.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
PIECES = st.builds(lambda index, text: {"type": "piece", "index": index, "text": text}, st.integers(0, 99), TEXTS)
OTHERS = st.builds(
    lambda kind, index: {"type": kind, "index": index}, st.sampled_from(["end", "peek", "drop"]), st.integers(0, 99)
)


@given(st.lists(PIECES | OTHERS, min_size=1, max_size=8))
def test_a_list_has_the_frames_that_its_members_are(frames: list[dict[str, Any]]) -> None:
    alone = [frame for one in frames for frame in read_frames(json.dumps(one))]
    assert read_frames(json.dumps(frames)) == alone and len(alone) == len(frames)


def test_white_space_before_a_list_changes_nothing() -> None:
    assert read_frames(' \n[{"type": "end", "index": 1}]') == read_frames('{"type": "end", "index": 1}')


def test_a_torn_piece_beside_others_keeps_its_half() -> None:
    torn = read_frames('[{"type": "piece", "index": 0, "text": "\\ud83d"}, {"type": "end", "index": 1}]')
    assert isinstance(torn[0], Piece) and torn[0].text == "\ud83d" and torn[1].type == "end"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("[]", None),
        ("[[]]", None),
        ("[1]", None),
        ('[{"type": "end", "index": 0}', None),
        ('[{"type": "end", "index": 0}, {"type": "end", "index": -1}]', "index"),
        ('[{"type": "end", "index": 0, "more": 1}]', "more"),
        ('[{"type": "piece", "index": 0, "text": "\\ud83d"}, {"type": "nobody"}]', None),
        ('[{"type": "open", "messages": [{"role": "user", "content": "\\ud83d"}]}]', None),
    ],
)
def test_what_is_wrong_with_one_is_wrong_with_the_list(message: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_frames(message)
    assert param is None or refused.value.param == param


def test_one_frame_is_an_object_and_several_are_a_list() -> None:
    frames: list[ServerFrame] = [Score(index=0, score=1.5, tokens=9), Partial(index=1, score=-2.0, tokens=8)]
    assert json.loads(message_of(frames[:1])) == frames[0].model_dump()
    assert json.loads(message_of(frames)) == [frame.model_dump() for frame in frames]
