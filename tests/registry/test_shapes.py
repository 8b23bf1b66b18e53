"""Which checkpoints belong together: as transformers makes them, and each way in which one can not be loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry.tiny import METADATA, SMALL, VOCABULARY, Tensors, read_safetensors, safetensors_bytes

from acemath_registry import ModelKind, Registry, RejectReason, VerificationError
from acemath_registry import publish as publishing
from acemath_registry.facts import ARCHITECTURES
from acemath_registry.shapes import expected, read_decoder, require_tensors
from acemath_registry.tensors import Tensor, read_tensors

R = RejectReason
WEIGHTS = "model.safetensors"
ATTENTION = "model.layers.0.self_attn"
NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        document = json.loads((directory / file).read_text()) if (directory / file).exists() else {}
        (directory / file).write_text(json.dumps(document | changes))

    return damage


def config(**changes: Any) -> Callable[[Path], None]:
    return edit("config.json", **changes)


def weights(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = read_safetensors(directory / WEIGHTS)
        change(tensors)
        (directory / WEIGHTS).write_bytes(safetensors_bytes(tensors))

    return damage


def added(token: Any) -> Callable[[Path], None]:
    return edit("tokenizer.json", added_tokens=[token])


CONFIG, TOKENIZER = (R.CONFIG_MALFORMED, "config.json"), (R.CONFIG_MALFORMED, "tokenizer.json")
NAMES, SHAPES, DTYPES = (R.TENSOR_NAMES, WEIGHTS), (R.TENSOR_SHAPES, WEIGHTS), (R.TENSOR_DTYPES, WEIGHTS)
CASES: list[tuple[str, Callable[[Path], None], R, str, str]] = [
    ("a width beyond all", config(hidden_size=10**18), *CONFIG, "from 1 to 1048576"),
    ("another width", config(hidden_size=32), *SHAPES, rf"\[{VOCABULARY}, 2\].*\[{VOCABULARY}, 32\]"),
    ("a layer too few", config(num_hidden_layers=2), *NAMES, r"layers\.1.*\[2\] \(and 8 more\) is mis"),
    ("no layers", config(num_hidden_layers=0), *CONFIG, "num_hidden_layers is 0"),
    (
        "a layer too many",
        weights(lambda t: t.update({name.replace(".0.", ".1."): t[name] for name in SMALL if ".0." in name})),
        *NAMES,
        r"'model\.layers\.1.*and 8 more",
    ),
    ("fewer rows said", config(vocab_size=100), *SHAPES, r"embed_tokens.*\[512, 2\].*\[100, 2\]"),
    ("negative heads", config(num_attention_heads=-2), *CONFIG, "num_attention_heads is -2"),
    ("heads that are text", config(num_attention_heads="2"), *CONFIG, "is '2'"),
    ("heads that are true", config(num_key_value_heads=True), *CONFIG, "is True"),
    ("heads that do not divide", config(num_key_value_heads=3), *CONFIG, "do not fit"),
    ("no width of the MLP", config(intermediate_size=None), *CONFIG, "intermediate_size"),
    ("an endless context", config(max_position_embeddings=10**12), *CONFIG, "max_position"),
    ("another model type", config(model_type="qwen2"), *CONFIG, "model_type is 'qwen2'"),
    ("a head that is missing", config(tie_word_embeddings=False), *NAMES, r"lm_head\.weight \[512, 2\]"),
    ("biases that are missing", config(attention_bias=True), *NAMES, r"q_proj\.bias \[2\] \(and 3 more"),
    (
        "a norm of two axes",
        weights(lambda t: t.update({NORM: ("BF16", [1, 2], t[NORM][2])})),
        *SHAPES,
        r"norm\.weight has shape \[1, 2\], config\.json makes it \[2\]",
    ),
    ("whole numbers", weights(lambda t: t.update({NORM: ("I16", [2], t[NORM][2])})), *DTYPES, "I16"),
    ("double precision", weights(lambda t: t.update({NORM: ("F64", [2], bytes(16))})), *DTYPES, "F64"),
    ("a tensor renamed", weights(lambda t: t.update({"../evil": t.pop(NORM)})), *NAMES, r"norm.* missing"),
    ("a tensor less", weights(lambda t: t.pop(UP)), *NAMES, r"up_proj\.weight \[2, 2\] is missing"),
    (
        "a tensor more",
        weights(lambda t: t.update({"extra.weight": ("BF16", [0], b"")})),
        *NAMES,
        r"'extra\.weight' \[0\] is no part",
    ),
    ("a score's head", weights(lambda t: t.update({"score.weight": ("BF16", [1, 2], b"1234")})), *NAMES, "score"),
    (
        "a head of another shape",
        weights(lambda t: t.update({"lm_head.weight": ("BF16", [1, 2], b"1234")})),
        *SHAPES,
        "lm_head",
    ),
    ("an end that is no token", config(eos_token_id=99999999), *CONFIG, "eos_token_id is 99999999"),
    ("one of its ends", config(eos_token_id=[1, 512]), *CONFIG, "eos_token_id is 512"),
    ("a negative begin", config(bos_token_id=-1), *CONFIG, "bos_token_id is -1"),
    (
        "an end that only generation has",
        edit("generation_config.json", eos_token_id=512),
        R.CONFIG_MALFORMED,
        "generation_config.json",
        "eos_token_id is 512",
    ),
    ("an empty tokenizer", lambda d: (d / "tokenizer.json").write_text("{}"), *TOKENIZER, "no model with a vocabulary"),
    (
        "a tokenizer without tokens",
        edit("tokenizer.json", model={"vocab": {}}),
        *TOKENIZER,
        "no model with a vocabulary",
    ),
    (
        "a token beyond the rows",
        added({"id": 60000, "content": "<zzz>"}),
        *TOKENIZER,
        "'<zzz>' has the id 60000, and the embedding has 512 rows",
    ),
    ("a token without an id", added("<zzz>"), *TOKENIZER, "'<zzz>' has the id None"),
    (
        "a word beyond the rows",
        edit("tokenizer.json", model={"vocab": {"a": 0, "b": 512}}),
        *TOKENIZER,
        "'b' has the id 512",
    ),
    (
        "a list of pieces too long",
        edit("tokenizer.json", model={"vocab": [["a", 0.0]] * 513}),
        *TOKENIZER,
        "has the id 512",
    ),
]


def refused(action: Callable[[], object], reason: R, file: str | None, said: str) -> None:
    with pytest.raises(VerificationError, match=said) as caught:
        action()
    assert (caught.value.reason, caught.value.file) == (reason, file), caught.value.message


@pytest.mark.parametrize(("damage", "reason", "file", "said"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_what_no_engine_can_load_is_neither_published_nor_verified(
    registry: Registry,
    make_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    reason: R,
    file: str,
    said: str,
) -> None:
    source = make_checkpoint()
    damage(source)
    refused(lambda: registry.publish(source, name="pol", kind="policy", metadata=METADATA), reason, file, said)
    assert registry.versions() == [] and not list((registry.root / "staging").iterdir())
    monkeypatch.setattr(publishing, "require_loadable", lambda *given: None)  # an older publisher let it pass
    ref = registry.publish(source, name="pol", kind="policy", metadata=METADATA)
    refused(lambda: registry.verify(ref), reason, file, said)


@pytest.mark.parametrize(
    "labels", [{"id2label": {"0": "no", "1": "yes"}}, {"id2label": None}, {"num_labels": 2, "id2label": None}]
)
def test_a_reward_model_has_one_label(
    registry: Registry, make_checkpoint: Callable[..., Path], labels: dict[str, Any]
) -> None:
    source = make_checkpoint("reward")
    config(**labels)(source)
    refused(
        lambda: registry.publish(source, name="rew", kind="reward", metadata=METADATA),
        R.WRONG_KIND,
        "config.json",
        "classifier with 2 labels",
    )


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("policy", weights(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))),
        ("reward", weights(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))),
        ("policy", weights(lambda t: t.update({"model.rotary_emb.inv_freq": ("F64", [1], bytes(8))}))),
        ("policy", weights(lambda t: t.update({f"{ATTENTION}.rotary_emb.inv_freq": ("F32", [1], bytes(4))}))),
        ("policy", weights(lambda t: t.update({NORM: ("F32", [2], bytes(8)), UP: ("F16", [2, 2], bytes(8))}))),
        ("policy", config(pad_token_id=-1, eos_token_id=[0, 511], bos_token_id=None)),
        ("reward", config(id2label=None, num_labels=1)),
        ("policy", edit("tokenizer.json", model={"vocab": [["a", 0.0]] * 512}, added_tokens=None)),
    ],
)
def test_what_engines_take_is_published(
    registry: Registry, make_checkpoint: Callable[..., Path], kind: str, change: Callable[[Path], None]
) -> None:
    source = make_checkpoint(kind)
    change(source)
    registry.verify(registry.publish(source, name="m", kind=kind, metadata=METADATA))


def test_what_a_method_of_quantisation_stores_is_its_own(make_checkpoint: Callable[..., Path]) -> None:
    quantised = {"quantization_config": {"quant_method": "awq"}}
    document = json.loads((make_checkpoint() / "config.json").read_text())
    require_tensors(document | quantised, [Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (1,), 0, 4)])
    with pytest.raises(VerificationError, match="num_hidden_layers"):
        require_tensors(document | quantised | {"num_hidden_layers": 10**9}, [])
    assert read_decoder({"architectures": ["OfTomorrowForCausalLM"]}) is None


def test_every_architecture_that_is_served_is_known(make_checkpoint: Callable[..., Path]) -> None:
    document = json.loads((make_checkpoint("reward") / "config.json").read_text())
    for name in ARCHITECTURES:
        family = "llama" if name.startswith("Llama") else "qwen2"
        assert read_decoder(document | {"architectures": [name], "model_type": family}) is not None, name


@pytest.mark.parametrize("architecture", [name for name, kind in ARCHITECTURES.items() if kind is ModelKind.REWARD])
def test_the_reward_engine_asks_for_the_same(make_checkpoint: Callable[..., Path], architecture: str) -> None:
    from acemath_reward.engine.config import parse_config
    from acemath_reward.engine.weights import expected_shapes

    document = json.loads((make_checkpoint("reward") / "config.json").read_text()) | {
        "architectures": [architecture],
        "model_type": "llama" if architecture.startswith("Llama") else "qwen2",
        **{"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2},
    }
    for width in (None, 8):
        decoder = read_decoder(document | {"head_dim": width})
        assert decoder is not None
        assert expected(decoder)[0] == expected_shapes(parse_config(document | {"head_dim": width}))


@st.composite
def made(draw: Any) -> tuple[str, dict[str, Any]]:
    """An architecture and options of its configuration, of any tiny shape."""
    groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    architecture = draw(st.sampled_from(sorted(ARCHITECTURES.keys() - {"Qwen2ForRewardModel"})))
    options: dict[str, Any] = {
        "vocab_size": draw(st.integers(1, 9)),
        "hidden_size": groups * share * 2 * draw(st.integers(1, 2)),
        "intermediate_size": draw(st.integers(1, 7)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": groups * share,
        "num_key_value_heads": groups,
        "tie_word_embeddings": draw(st.booleans()),
        "num_labels": 1,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    if architecture.startswith("Llama"):
        options |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    if draw(st.booleans()):
        options["head_dim"] = 2 * draw(st.integers(1, 3))
    return architecture, options


@settings(max_examples=25, deadline=None)
@given(made())
def test_the_names_and_shapes_are_those_that_transformers_saves(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[str, dict[str, Any]]
) -> None:
    transformers = pytest.importorskip("transformers")
    architecture, options = made
    model = getattr(transformers, architecture)
    directory = tmp_path_factory.mktemp("saved")
    model(model.config_class(**options)).save_pretrained(directory)
    document = json.loads((directory / "config.json").read_text())
    tensors = read_tensors(directory, [path.name for path in directory.iterdir()])
    decoder = read_decoder(document)
    assert decoder is not None
    needed, allowed = expected(decoder)
    assert {one.name: one.shape for one in tensors} == needed
    assert allowed.keys() <= {"lm_head.weight"}
    require_tensors(document, tensors)


@settings(max_examples=25, deadline=None)
@given(made(), st.data())
def test_one_difference_is_told_by_its_name(made: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    """Of a fitting set any tensor may be lost, renamed, transposed or stored as whole numbers; each has its reason."""
    architecture, options = made
    document = options | {
        "architectures": [architecture],
        "model_type": "llama" if architecture.startswith("Llama") else "qwen2",
        "max_position_embeddings": 8,
    }
    decoder = read_decoder(document)
    assert decoder is not None
    tensors = [Tensor(name, "BF16", shape, 0, 0, WEIGHTS) for name, shape in expected(decoder)[0].items()]
    require_tensors(document, tensors)
    one = tensors.pop(data.draw(st.integers(0, len(tensors) - 1)))
    wrong, reason = data.draw(
        st.sampled_from(
            [
                ([], R.TENSOR_NAMES),
                ([Tensor(f"{one.name}x", "BF16", one.shape, 0, 0, WEIGHTS)], R.TENSOR_NAMES),
                ([one, Tensor("x", "BF16", one.shape, 0, 0, WEIGHTS)], R.TENSOR_NAMES),
                ([Tensor(one.name, "BF16", (*one.shape, 1), 0, 0, WEIGHTS)], R.TENSOR_SHAPES),
                ([Tensor(one.name, "BF16", (one.shape[0] + 1, *one.shape[1:]), 0, 0, WEIGHTS)], R.TENSOR_SHAPES),
                ([Tensor(one.name, "I8", one.shape, 0, 0, WEIGHTS)], R.TENSOR_DTYPES),
            ]
        )
    )
    refused(lambda: require_tensors(document, [*tensors, *wrong]), reason, WEIGHTS, "tensor")
