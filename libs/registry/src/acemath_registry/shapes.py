"""Do the weights belong to config.json? The names and shapes of the tensors that it asks for, and what the headers say.

Known are the architectures of `facts.ARCHITECTURES`: a Llama or Qwen2 decoder under a language model's head, a linear
head of one label, or the two maps of Qwen2.5-Math-RM. Of another architecture, and of quantised weights (whose layout
is that of their method), neither names, shapes nor number formats are looked at; an engine is then the first to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from acemath_registry.errors import RejectReason, VerificationError
from acemath_registry.files import CONFIG_NAME, INDEX_NAME
from acemath_registry.tensors import Tensor

Shapes = dict[str, tuple[int, ...]]

_FAMILIES: Final = {"Llama": "llama", "Qwen2": "qwen2"}
"""How an architecture's name begins → its `model_type`."""
_WRITER, _CLASSIFIER, _TWO_MAPS = "ForCausalLM", "ForSequenceClassification", "ForRewardModel"

_LARGEST: Final[Mapping[str, int]] = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 4096,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "max_position_embeddings": 2**27,
}
"""Ten times and more what the largest models have; a product of them stays far from what an engine counts with."""
_FLOATS: Final = ("BF16", "F16", "F32")
_BUFFERS: Final = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")
"""What older transformers saved and vLLM skips: it follows from config.json."""
_EXPORT: Final = "export config and weights together"


@dataclass(frozen=True, slots=True)
class Decoder:
    """What of a config.json decides the tensors.

    Attributes:
        family: `llama` or `qwen2`.
        head: how the architecture's name ends.
        vocabulary: rows of the embedding.
        hidden: width of the residual stream.
        wide: width of the gated MLP.
        layers: decoder layers.
        queries: width of the query map, heads times the width of a head.
        keys: width of the key map, and of the value map.
        biased: names of the maps that have a bias, as `q_proj`.
        tied: whether the language model's head is the embedding.
    """

    family: str
    head: str
    vocabulary: int
    hidden: int
    wide: int
    layers: int
    queries: int
    keys: int
    biased: frozenset[str]
    tied: bool


def require_tensors(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """Refuse a config.json that no engine could build, and weights that are not those of the model it describes.

    Args:
        config: the document, whose one architecture is served.
        tensors: of all weight files.

    Raises:
        VerificationError: CONFIG_MALFORMED, WRONG_KIND (a classifier of several labels), TENSOR_NAMES, TENSOR_SHAPES or
            TENSOR_DTYPES.
    """
    decoder = read_decoder(config)
    if decoder is None or config.get("quantization_config") is not None:
        return
    needed, allowed = expected(decoder)
    found = {tensor.name: tensor for tensor in tensors if not tensor.name.endswith(_BUFFERS)}
    _check_names(found, needed, allowed, INDEX_NAME if len({one.file for one in tensors}) > 1 else tensors[0].file)
    for name, shape in (needed | allowed).items():
        if name in found:
            _check_tensor(found[name], shape)


def read_decoder(config: Mapping[str, Any]) -> Decoder | None:
    """What a config.json asks for; None of an architecture whose tensors are not known here.

    Raises:
        VerificationError: CONFIG_MALFORMED or WRONG_KIND.
    """
    family, head = _known(str(config["architectures"][0]))
    if family is None:
        return None
    if config.get("model_type") != family:
        raise _malformed(f"model_type is {config.get('model_type')!r}, not {family!r} as the architecture asks")
    if head == _CLASSIFIER:
        _require_one_label(config)
    _number(config, "max_position_embeddings")
    queries, keys = _attention(config)
    return Decoder(
        family=family,
        head=head,
        vocabulary=_number(config, "vocab_size"),
        hidden=_number(config, "hidden_size"),
        wide=_number(config, "intermediate_size"),
        layers=_number(config, "num_hidden_layers"),
        queries=queries,
        keys=keys,
        biased=_biased(config, family),
        tied=config.get("tie_word_embeddings") is True,
    )


def expected(decoder: Decoder) -> tuple[Shapes, Shapes]:
    """Name → shape of the tensors that there must be, and of those that there may be, since engines skip them."""
    hidden = decoder.hidden
    needed: Shapes = {"model.embed_tokens.weight": (decoder.vocabulary, hidden), "model.norm.weight": (hidden,)}
    for index in range(decoder.layers):
        needed.update(_layer(decoder, f"model.layers.{index}."))
    writing: Shapes = {"lm_head.weight": (decoder.vocabulary, hidden)}
    if decoder.head == _WRITER:
        return (needed, writing) if decoder.tied else (needed | writing, {})
    return needed | _scoring(decoder), writing


def _scoring(decoder: Decoder) -> Shapes:
    hidden = decoder.hidden
    if decoder.head == _CLASSIFIER:
        return {"score.weight": (1, hidden)}
    first: Shapes = {"score.0.weight": (hidden, hidden), "score.0.bias": (hidden,)}
    return first | {"score.2.weight": (1, hidden), "score.2.bias": (1,)}


def _layer(decoder: Decoder, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, wide = decoder.hidden, decoder.wide
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{prefix}{norm}.weight", (hidden,)
    maps = {
        "self_attn.q_proj": (decoder.queries, hidden), "self_attn.k_proj": (decoder.keys, hidden),
        "self_attn.v_proj": (decoder.keys, hidden), "self_attn.o_proj": (hidden, decoder.queries),
        "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    for name, (rows, columns) in maps.items():
        yield f"{prefix}{name}.weight", (rows, columns)
        if name.partition(".")[2] in decoder.biased:
            yield f"{prefix}{name}.bias", (rows,)


def _known(architecture: str) -> tuple[str | None, str]:
    for name, family in _FAMILIES.items():
        head = architecture.removeprefix(name)
        if head in (_WRITER, _CLASSIFIER, _TWO_MAPS) and head != architecture:
            return family, head
    return None, ""


def _attention(config: Mapping[str, Any]) -> tuple[int, int]:
    """Widths of the query map and of the key map."""
    heads, hidden = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    groups = _number(config, "num_key_value_heads", heads)
    width = _number(config, "head_dim", hidden // heads)
    if heads % groups or width % 2 or (config.get("head_dim") is None and hidden % heads):
        said = f"{heads} query heads, {groups} key heads and heads of {width} do not fit a hidden_size of {hidden}"
        raise _malformed(said)
    return heads * width, groups * width


def _biased(config: Mapping[str, Any], family: str) -> frozenset[str]:
    if family == "qwen2":
        return frozenset({"q_proj", "k_proj", "v_proj"})
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"} if config.get("attention_bias") else set[str]()
    return frozenset(attention | ({"gate_proj", "up_proj", "down_proj"} if config.get("mlp_bias") else set()))


def _number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value, largest = config.get(key), _LARGEST[key]
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= largest:
        raise _malformed(f"{key} is {value!r}, not a whole number from 1 to {largest}")
    return value


def _require_one_label(config: Mapping[str, Any]) -> None:
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)  # transformers' default is 2
    if count != 1:
        said = f"is of a classifier with {count} labels; a reward model has one: train it with num_labels=1"
        raise VerificationError(RejectReason.WRONG_KIND, said, file=CONFIG_NAME)


def _malformed(detail: str) -> VerificationError:
    return VerificationError(RejectReason.CONFIG_MALFORMED, f"{detail}; {_EXPORT}", file=CONFIG_NAME)


def _check_names(found: Mapping[str, Tensor], needed: Shapes, allowed: Shapes, weights: str) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        name = missing[0]
        said = (
            f"tensor {name} {list(needed[name])}{_others(missing)} is missing, which {CONFIG_NAME} asks for; {_EXPORT}"
        )
        raise VerificationError(RejectReason.TENSOR_NAMES, said, file=weights)
    surplus = [name for name in found if name not in needed and name not in allowed]
    if surplus:
        tensor = found[surplus[0]]
        said = (
            f"tensor {tensor.name!r} {list(tensor.shape)}{_others(surplus)} is no part of the model that {CONFIG_NAME}"
        )
        raise VerificationError(RejectReason.TENSOR_NAMES, f"{said} describes; {_EXPORT}", file=tensor.file)


def _others(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_tensor(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        said = f"tensor {tensor.name} has shape {list(tensor.shape)}, {CONFIG_NAME} makes it {list(shape)}; {_EXPORT}"
        raise VerificationError(RejectReason.TENSOR_SHAPES, said, file=tensor.file)
    if tensor.dtype not in _FLOATS:
        said = f"tensor {tensor.name} is stored as {tensor.dtype}; served are {', '.join(_FLOATS)}: export it as one"
        raise VerificationError(RejectReason.TENSOR_DTYPES, said, file=tensor.file)
