"""A turn that arrives in pieces has the ids of the finished conversation, whatever the text and wherever it is cut."""

from __future__ import annotations

import itertools
import json
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prompts.conftest import CHATML, make_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from acemath_core.prompts import ChatMessage
from acemath_prompts import ChatTemplate, PromptEncoder
from acemath_prompts.growing import _NEVER, _SPLIT, cuts_of

CORPUS = [
    "Tom has 3 apples and buys 4 more.\n\nHow many? \\boxed{7}\nuser assistant",
    "Thus $x = \\frac{12}{345}$, so we're done.",
    "été naïve  don't   ... \r\n\t\n 中文 数学 ١٢٣ \u0301",
]
PLAIN = (
    "{% for m in messages %}\n{{ m['role'] }}: {{ m['content'] }} .{% endfor %}"
    "{% if add_generation_prompt %}\nassistant: {% endif %}"
)
TRIMMED = CHATML.replace("message['content']", "message['content'] | trim")
BARE = CHATML.replace("'<|im_end|>' + ", "")
TEMPLATES = {"chatml": CHATML, "no control tokens": PLAIN, "trimming": TRIMMED, "no end token": BARE}
STEPS = {
    "gpt2": [],
    "digits": [pre_tokenizers.Digits(individual_digits=True)],
    "qwen2": [pre_tokenizers.Split(Regex(_SPLIT % r"\p{N}"), "isolated")],
    "llama3": [pre_tokenizers.Split(Regex(_SPLIT % r"\p{N}{1,3}"), "isolated")],
    "unknown": [pre_tokenizers.Split(Regex(r"\w+ \w+|\s+|."), "isolated")],
}


@cache
def tokenizer_of(kind: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "digits"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*STEPS[kind], byte_level])
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("<tool", special=False)])
    return str(tokenizer.to_str())


@cache
def encoder_of(kind: str, template: str) -> PromptEncoder:
    return PromptEncoder(tokenizer_of(kind), ChatTemplate(TEMPLATES[template], {}))


# Everything that a pre-tokenizer, a normalizer or an added token treats in a way of its own, many times over.
fragments = st.one_of(
    st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2028", "\x1c", "\x85", "\u200b", "\u180e"]),
    st.sampled_from(["'s", "'", "don't", "e", "\u0301", "\u00e9", "\u212b", "K", "가", "\u1100", "\u1161", "\u0344"]),
    st.sampled_from(["1", "23", "456", "½", "١", "中", "文", "<tool_call>", "<tool", "_call>", "<|im_end|>", "<|im_"]),
    st.sampled_from(
        ["apples", " apples", "Tom has", ".", "...", "\\boxed{7}", "$x$", "=", "_", "~", "🙂", "\U00020000"]
    ),
    st.text(max_size=4),
)
texts = st.lists(fragments, max_size=24).map("".join)
CONTEXT: list[ChatMessage] = [{"role": "user", "content": "How many apples?"}]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", STEPS)
@settings(max_examples=60, deadline=None)
@given(text=texts, borders=st.lists(st.integers(0, 80), max_size=10))
@example(text="", borders=[])
@example(text="\n\nTom has e\u0301 3 apples. \n So  ", borders=list(range(30)))
def test_pieces_have_the_ids_of_the_whole(kind: str, template: str, text: str, borders: list[int]) -> None:
    encoder = encoder_of(kind, template)
    places = sorted({0, len(text), *(border % (len(text) + 1) for border in borders)})
    opened = encoder.open_turn(CONTEXT)
    turn = encoder.growing(opened)
    ids: list[int] = []
    for start, stop in itertools.pairwise(places):
        ids += turn.add(text[start:stop])
        assert ids + turn.end() == encoder.encode_turn(opened, text[:stop]), "to ask changes nothing"
    expected = encoder.encode_conversation([*CONTEXT, {"role": "assistant", "content": text}])
    assert ids == expected[: len(ids)], "nothing is taken back"
    assert ids + turn.end() == expected
    assert encoder.encode_turn(opened, text) == expected


@pytest.mark.parametrize("kind", ["gpt2", "digits", "qwen2", "llama3"])
def test_only_the_last_word_is_held(kind: str) -> None:
    encoder = encoder_of(kind, "chatml")
    turn = encoder.growing(encoder.open_turn(CONTEXT))
    prompt = encoder.encode_prompt(CONTEXT)
    ids = turn.add("Tom has 3 apples and buys 4 more")
    assert ids == [*prompt, *encoder._encode_text("Tom has 3 apples and buys 4")]


def test_an_unproven_tokenizer_holds_everything_to_the_end() -> None:
    encoder = encoder_of("unknown", "chatml")
    assert encoder.growing(encoder.open_turn(CONTEXT)).add("Tom has 3 apples and buys 4 more.\n\n") == []


def test_a_tokenizer_is_proven_by_every_part_of_it() -> None:
    document = json.loads(make_tokenizer().to_str())
    assert cuts_of(document, ()) is not _NEVER
    spoilt = [
        {"model": {"type": "Unigram"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"added_tokens": [{"content": "a b"}]},
        {"added_tokens": [{"content": "<x>", "rstrip": True}]},
        {"added_tokens": [{"content": "<x>", "single_word": True}]},
    ]
    for change in spoilt:
        assert cuts_of(document | change, ()) is _NEVER, change


def test_digits_before_the_expression_are_proven_too() -> None:
    """Digits one by one, then GPT-2's expression, as SmolLM2 has it."""
    digits = {"type": "Digits", "individual_digits": True}
    document = json.loads(make_tokenizer().to_str())
    steps = [digits, document["pre_tokenizer"]]
    assert cuts_of(document | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}, ()) is not _NEVER
    assert cuts_of(document | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps[::-1]}}, ()) is _NEVER
