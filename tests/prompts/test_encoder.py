from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from acemath_core.prompts import ChatMessage, policy_messages, reward_messages
from acemath_prompts import ChatTemplate, PromptEncoder, TemplateError

# The helpers of conftest.py are reached through fixtures: tests are not a package.
ORDINARY = st.text(st.characters(codec="utf-8"), max_size=60).filter(lambda text: "<" not in text)
HOSTILE = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "assistant\n", "\n", "<|im_", "end|>", "<tool_call>", "x"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> PromptEncoder:
    return PromptEncoder.from_directory(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    tokenizer.chat_template = (checkpoint / "chat_template.jinja").read_text()
    return tokenizer


@given(problem=ORDINARY, solution=ORDINARY)
@settings(max_examples=200, deadline=None)
def test_ordinary_text_gives_the_ids_of_apply_chat_template(
    encoder: PromptEncoder, reference: PreTrainedTokenizerFast, problem: str, solution: str
) -> None:
    prompt, conversation = policy_messages(problem), reward_messages(problem, solution)
    assert (
        encoder.encode_prompt(prompt) == reference.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    )
    assert encoder.encode_conversation(conversation) == reference.apply_chat_template(conversation)["input_ids"]


@given(problem=HOSTILE, solution=HOSTILE)
@settings(max_examples=200, deadline=None)
def test_no_text_can_end_a_turn_or_forge_one(encoder: PromptEncoder, problem: str, solution: str) -> None:
    harmless, hostile = reward_messages("p", "s"), reward_messages(problem, solution)
    for encode in (encoder.encode_prompt, encoder.encode_conversation):
        expected = [i for i in encode(harmless) if i in encoder.control_ids]
        assert [i for i in encode(hostile) if i in encoder.control_ids] == expected


@given(problem=HOSTILE | ORDINARY)
@settings(max_examples=100, deadline=None)
def test_nothing_of_the_text_is_lost(encoder: PromptEncoder, checkpoint: Path, problem: str) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = tokenizer.decode(encoder.encode_prompt([{"role": "user", "content": problem}]), skip_special_tokens=False)
    assert text == f"<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"


def test_the_end_of_an_assistant_turn(encoder: PromptEncoder, checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert tokenizer.decode(encoder.turn_end(policy_messages("p")), skip_special_tokens=False) == "<|im_end|>\n"


def test_a_template_that_strips_contents_strips_them_here_too() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}", {})
    pieces = template.render([{"role": "user", "content": "  a b \n"}], add_generation_prompt=False)
    assert "".join(piece.text for piece in pieces) == "[a b]"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for m in messages %}", "does not compile"),
        ("{{ strftime_now('%d') }}{{ messages[0]['content'] }}", "date"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0]['content'] }}", "refuses"),
    ],
)
def test_an_unusable_template_is_refused_when_it_is_loaded(source: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        ChatTemplate(source, {})


def test_a_template_that_drops_a_turn_is_refused() -> None:
    template = ChatTemplate("{{ messages[-1]['content'] }}", {})
    turns: list[ChatMessage] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(TemplateError, match="drops, repeats or reorders"):
        template.render(turns, add_generation_prompt=False)


def test_a_control_token_that_strips_its_neighbours_is_refused(checkpoint: Path) -> None:
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    document["added_tokens"][1]["rstrip"] = True
    template = ChatTemplate((checkpoint / "chat_template.jinja").read_text(), {})
    with pytest.raises(TemplateError, match="strips the text beside it"):
        PromptEncoder(json.dumps(document), template)


def test_a_checkpoint_without_a_template_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((checkpoint / name).read_text())
    with pytest.raises(TemplateError, match="no single chat template"):
        PromptEncoder.from_directory(tmp_path)


def test_an_encoder_that_nobody_uses_is_freed_at_once(checkpoint: Path) -> None:
    """A tokenizer takes tens of megabytes: it does not wait for a full collection, which a busy service may put off."""
    gc.disable()
    try:
        encoder = PromptEncoder.from_directory(checkpoint)
        assert encoder.encode_prompt(policy_messages("2 + 2"))
        left = weakref.ref(encoder)
        del encoder
        assert left() is None
    finally:
        gc.enable()
