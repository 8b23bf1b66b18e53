"""Rendered conversations: tokenised as the checkpoint's tokenizer does, cut and completed as `/v1/score` would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reward.tiny import write_tokenizer
from tokenizers import Tokenizer, processors

from acemath_core.prompts import reward_context, reward_messages
from acemath_core.wire import ScoreRequest
from acemath_prompts import PromptEncoder
from acemath_reward.activation import Head
from acemath_reward.encoding import Vocabulary, encode
from acemath_reward.rendered import RenderedText

LLAMA3 = (
    "{{ '<|endoftext|>' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_end|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)
PROBLEM = "What is 3 + 4?"
ANSWERS = ["3 + 4 = 7", "", " ", "\n", "\n\nSo 7", "7\n", "assistant\n7", "<|im_start|>assistant\n", "7<|im_end|>\n\n8"]


@pytest.fixture(scope="module", params=["chatml", "llama3"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChatML; and one bos before all, headers of several tokens, trimmed contents, as Llama 3 has them."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(folder)
    if request.param == "llama3":
        (folder / "chat_template.jinja").write_text(LLAMA3)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens(["<|eot|>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
    return folder


@pytest.fixture(scope="module")
def vocabulary(directory: Path) -> Vocabulary:
    encoder = PromptEncoder.from_directory(directory)
    rendered = RenderedText.from_directory(directory, encoder, frozenset({0}))
    return Vocabulary(encoder, frozenset({0}), 1000, 1000, rendered, Head())


def prompt_text(vocabulary: Vocabulary, directory: Path) -> str:
    ids = vocabulary.encoder.encode_prompt(reward_context([{"role": "user", "content": PROBLEM}]))
    return Tokenizer.from_file(str(directory / "tokenizer.json")).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_conversation_is_cut_where_score_cuts_it(vocabulary: Vocabulary, answer: str) -> None:
    expected = encode(ScoreRequest(problem=PROBLEM, candidates=[answer]), vocabulary).sequences[0]
    ids = vocabulary.encoder.encode_conversation(reward_messages(PROBLEM, answer))
    assert vocabulary.rendered.split(ids) == expected


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("ending", ["", "turn", "<|endoftext|>"])
def test_an_answer_to_a_prompt_has_the_ids_of_a_candidate(
    vocabulary: Vocabulary, directory: Path, answer: str, ending: str
) -> None:
    turn = vocabulary.encoder.turn_end([{"role": "user", "content": "."}])
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    written = answer + (tokenizer.decode(turn[:1], skip_special_tokens=False) if ending == "turn" else ending)
    found = vocabulary.rendered.answered(prompt_text(vocabulary, directory), written)
    assert found == vocabulary.encoder.encode_conversation(reward_messages(PROBLEM, answer))


def test_a_prompt_that_does_not_open_an_answer_gives_none(vocabulary: Vocabulary) -> None:
    assert vocabulary.rendered.answered("Question: 3 + 4?", "7") is None
    assert vocabulary.rendered.answered("", "7") is None


def test_an_end_of_turn_is_completed_once(vocabulary: Vocabulary) -> None:
    whole = vocabulary.encoder.encode_conversation(reward_messages(PROBLEM, "7"))
    end = vocabulary.encoder.turn_end([{"role": "user", "content": "."}])
    body = whole[: len(whole) - len(end)]
    for ids in (body, [*body, end[0]], whole, [*body, 0]):
        assert vocabulary.rendered.completed(ids) == whole


def test_special_tokens_are_recognised_and_added_on_request(vocabulary: Vocabulary, directory: Path) -> None:
    plain = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in ("<|im_start|>user", "ordinary", PROBLEM):
        for added in (True, False):
            expected = plain.encode(text, add_special_tokens=added).ids
            assert vocabulary.rendered.ids(text, add_special_tokens=added) == expected
    assert vocabulary.rendered.ids("<|im_start|>", add_special_tokens=False) == [1]


@pytest.mark.parametrize("ids", [[5], [1], [1, 1], list(range(30))])
def test_any_ids_keep_a_row_to_score(vocabulary: Vocabulary, ids: list[int]) -> None:
    sequence = vocabulary.rendered.split(ids)
    assert [*sequence.prompt, *sequence.own] == ids and sequence.own


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "Sigmoid"),
        ({"problem_type": "regression"}, "Identity"),
        ({"problem_type": "single_label_classification"}, "Sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "Identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}, "Sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "Tanh"),
        ({"problem_type": "regression", "sentence_transformers": {"activation_fn": "x"}}, "Identity"),
    ],
)
def test_the_activation_is_the_one_that_vllm_reads(config: dict[str, object], activation: str) -> None:
    assert Head.from_config(json.loads(json.dumps(config))).activation == activation


def test_the_sigmoid_is_float32_and_never_overflows() -> None:
    import struct

    head = Head()
    for score in (-1e30, -800.0, -3.25, 0.0, 2.5, 1e30):
        value = head.value(score, None)
        assert 0 <= value <= 1 and struct.unpack("f", struct.pack("f", value))[0] == value
        assert head.value(score, False) == score
    assert head.value(0.0, True) == 0.5


def test_an_activation_that_is_not_implemented_is_refused_and_the_raw_score_is_not() -> None:
    from acemath_core.errors import InvalidRequest

    head = Head("LABEL_0", "Tanh")
    with pytest.raises(InvalidRequest) as refusal:
        head.value(1.0, None)
    assert refusal.value.param == "use_activation"
    assert head.value(1.0, False) == 1.0


def test_the_label_is_the_checkpoints() -> None:
    assert Head.from_config({"id2label": {"0": "reward"}}).label == "reward"
    assert Head.from_config({}).label == "LABEL_0"
    assert Head.from_config({"id2label": {"1": "x"}}).label is None
