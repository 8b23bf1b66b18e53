import json
from pathlib import Path

import pytest

from acemath_core.prompts import policy_messages
from acemath_core.wire import Turn
from acemath_prompts import PromptEncoder, RenderingMismatch, TemplateError, check_rendering

TURNS = [Turn(role="user", content="How many apples?"), Turn(role="assistant", content="7")]


@pytest.fixture
def ids(checkpoint: Path) -> list[int]:
    encoder = PromptEncoder.from_directory(checkpoint)
    return encoder.encode_conversation([{"role": turn.role, "content": turn.content} for turn in TURNS])


def changed(checkpoint: Path, copy: Path, template: str | None = None, merges: int | None = None) -> PromptEncoder:
    copy.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy / name).write_text((checkpoint / name).read_text())
    if template is not None:
        (copy / "chat_template.jinja").write_text(template)
    if merges is not None:
        document = json.loads((copy / "tokenizer.json").read_text())
        document["model"]["merges"] = document["model"]["merges"][:merges]
        (copy / "tokenizer.json").write_text(json.dumps(document))
    return PromptEncoder.from_directory(copy)


def test_the_trainers_own_tokenizer_agrees(checkpoint: Path, ids: list[int]) -> None:
    check_rendering(PromptEncoder.from_directory(checkpoint), [(TURNS, ids), (TURNS, tuple(ids))])


def test_another_template_or_tokenizer_does_not(checkpoint: Path, ids: list[int], tmp_path: Path) -> None:
    source = (checkpoint / "chat_template.jinja").read_text()
    spoilt = changed(checkpoint, tmp_path / "template", template=source.replace("user", "human") + "{{ '.' }}")
    with pytest.raises(RenderingMismatch, match=rf"conversation 0, the trainer had {len(ids)}"):
        check_rendering(spoilt, [(TURNS, ids)])
    with pytest.raises(RenderingMismatch, match="publish the trained tokenizer"):
        check_rendering(changed(checkpoint, tmp_path / "tokenizer", merges=3), [(TURNS, ids)])


def test_the_message_says_from_where_on(checkpoint: Path, ids: list[int]) -> None:
    encoder = PromptEncoder.from_directory(checkpoint)
    for wrong, where in ((ids[:-2], len(ids) - 2), ([*ids, 1], len(ids)), ([ids[0], 9, *ids[2:]], 1)):
        with pytest.raises(RenderingMismatch, match=f"differ from id {where} on"):
            check_rendering(encoder, [(TURNS, wrong)])


def test_a_template_that_refuses_says_so(checkpoint: Path, ids: list[int], tmp_path: Path) -> None:
    source = (checkpoint / "chat_template.jinja").read_text()
    refusing = (
        "{% if messages[0].role == 'user' and messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        + source
    )
    encoder = changed(checkpoint, tmp_path / "refusing", template=refusing)
    assert encoder.encode_prompt(policy_messages("x"))
    with pytest.raises(TemplateError):
        check_rendering(encoder, [(TURNS, ids)])
