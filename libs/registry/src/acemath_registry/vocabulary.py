"""Does every token have a row in the embedding? The ids of the tokenizer and of the special tokens in the configs.

The tokenizer is read as JSON, without its library: that it has a vocabulary, and which ids. Whether it can be loaded,
and whether the chat template compiles, is for the services, which have the libraries for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.files import CONFIG_NAME, TOKENIZER_NAME
from acemath_registry.tensors import read_json

_GENERATION_CONFIG: Final = "generation_config.json"
_SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_NO_PADDING: Final = -1
"""What Llama's first configs have as `pad_token_id`."""


def require_ids(directory: Path, vocab_size: int) -> None:
    """Refuse a token without a row in the embedding, and a tokenizer without a vocabulary.

    Args:
        directory: of the version.
        vocab_size: rows of the embedding.

    Raises:
        VerificationError: CONFIG_MALFORMED, naming file and token.
        StorageError: a file can not be read.
    """
    for name in (CONFIG_NAME, _GENERATION_CONFIG):
        with storage_errors(f"reading {name}"):
            there = (directory / name).is_file()
        if there:
            _check_special(name, read_json(directory / name, RejectReason.CONFIG_MALFORMED), vocab_size)
    tokens = dict(_tokens(read_json(directory / TOKENIZER_NAME, RejectReason.CONFIG_MALFORMED)))
    for token, number in tokens.items():
        if not _fits(number, vocab_size):
            said = f"token {token!r} has the id {number!r}, and the embedding has {vocab_size} rows"
            do = "save the tokenizer that the model was trained with, or train it with a resized embedding"
            raise _malformed(TOKENIZER_NAME, f"{said}; {do}")


def _check_special(file: str, config: Mapping[str, Any], vocab_size: int) -> None:
    for key in _SPECIAL:
        value = config.get(key)
        for number in value if isinstance(value, list) else [value]:
            unset = number is None or (key == "pad_token_id" and number == _NO_PADDING)
            if not unset and not _fits(number, vocab_size):
                said = f"{key} is {number!r}, not an id below the vocab_size of {vocab_size}; set it to the tokenizer's"
                raise _malformed(file, said)


def _tokens(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Token and id, of the model's vocabulary and of what was added to it."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not vocabulary or not isinstance(added, list):
        raise _malformed(TOKENIZER_NAME, "has no model with a vocabulary; save the model's tokenizer with it")
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:  # of a unigram model: pairs of a token and its score, by id
        yield from ((str(pair), number) for number, pair in enumerate(vocabulary))
    for token in added:
        yield (str(token.get("content")), token.get("id")) if isinstance(token, dict) else (str(token), None)


def _fits(number: object, vocab_size: int) -> bool:
    return type(number) is int and 0 <= number < vocab_size


def _malformed(file: str, detail: str) -> VerificationError:
    return VerificationError(RejectReason.CONFIG_MALFORMED, detail, file=file)
