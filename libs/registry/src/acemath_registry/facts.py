"""What a version's files say about it: kind, architecture, dtype, vocabulary, length, tokenizer, chat template.

These are computed from the bytes, at publish and again at verify; nobody's word is taken for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from acemath_registry.documents import sha256_hex
from acemath_registry.durable import read_file
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.files import CONFIG_NAME, REQUIRED_NAMES, TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from acemath_registry.manifest import Compatibility, ComputedFacts, ModelKind
from acemath_registry.tensors import Tensor, digest_tensors, dominant_dtype, read_json

ARCHITECTURES: Final[Mapping[str, ModelKind]] = {
    "LlamaForCausalLM": ModelKind.POLICY,
    "Qwen2ForCausalLM": ModelKind.POLICY,
    "LlamaForSequenceClassification": ModelKind.REWARD,
    "Qwen2ForSequenceClassification": ModelKind.REWARD,
    "Qwen2ForRewardModel": ModelKind.REWARD,
}
"""What this project serves, and as what."""

MAY_NAME_CODE: Final = frozenset({CONFIG_NAME, TOKENIZER_CONFIG_NAME, "generation_config.json"})
"""In vocab.json and added_tokens.json the keys are tokens, and `auto_map` may be one."""

_MAX_TEMPLATE_BYTES: Final = 1_000_000
_NO_LIMIT: Final = 10**9
"""transformers writes 10^30 for "no limit"; no context is a thousand million tokens long."""


def require_files(names: set[str]) -> None:
    """Refuse a version without what every server needs.

    Raises:
        VerificationError: FILE_MISSING.
    """
    for name in REQUIRED_NAMES:
        if name not in names:
            raise VerificationError(
                RejectReason.FILE_MISSING,
                "every version needs it; save the tokenizer and config with the model",
                file=name,
            )


def compute_facts(directory: Path, names: set[str], tensors: list[Tensor]) -> ComputedFacts:
    """The facts about the version in `directory`, whose files are `names` and hold `tensors`.

    Raises:
        VerificationError: an unknown architecture, code by `auto_map`, a config or template that can not be used.
        StorageError: a file can not be read.
    """
    require_files(names)
    configs = {name: _read_config(directory / name) for name in sorted(names) if name.endswith(".json")}
    config, tokenizer_config = configs[CONFIG_NAME], configs[TOKENIZER_CONFIG_NAME]
    architecture = architecture_of(config)
    return ComputedFacts(
        kind=ARCHITECTURES[architecture],
        architecture=architecture,
        dtype=dominant_dtype(tensors),
        tensors=digest_tensors(tensors),
        compatibility=Compatibility(
            vocab_size=_positive(config, "vocab_size"),
            max_length=_max_length(config, tokenizer_config),
            tokenizer_sha256=_sha256(directory / TOKENIZER_NAME),
            chat_template_sha256=sha256_hex(_chat_template(directory, names, tokenizer_config).encode()),
        ),
    )


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path, RejectReason.CONFIG_MALFORMED)
    if path.name in MAY_NAME_CODE and "auto_map" in config:
        raise VerificationError(
            RejectReason.AUTO_MAP, "has an auto_map, which would load code; remove that key", file=path.name
        )
    return config


def architecture_of(config: dict[str, Any]) -> str:
    """The one architecture that a config.json declares, if this project serves it.

    Raises:
        VerificationError: ARCHITECTURE.
    """
    declared = config.get("architectures")
    if (
        isinstance(declared, list)
        and len(declared) == 1
        and isinstance(declared[0], str)
        and declared[0] in ARCHITECTURES
    ):
        return declared[0]
    raise VerificationError(
        RejectReason.ARCHITECTURE,
        f"architectures is {declared!r}; this project serves exactly one of {', '.join(sorted(ARCHITECTURES))}",
        file=CONFIG_NAME,
    )


def _max_length(config: dict[str, Any], tokenizer_config: dict[str, Any]) -> int:
    of_model, of_tokenizer = _positive(config, "max_position_embeddings"), tokenizer_config.get("model_max_length")
    usable = isinstance(of_tokenizer, int) and 0 < of_tokenizer < _NO_LIMIT
    return min(of_model, of_tokenizer) if usable and of_tokenizer else of_model


def _positive(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise VerificationError(
            RejectReason.CONFIG_MALFORMED, f"{key} is {value!r}, not a positive number; save it again", file=CONFIG_NAME
        )
    return value


def _chat_template(directory: Path, names: set[str], tokenizer_config: dict[str, Any]) -> str:
    inline = tokenizer_config.get("chat_template")
    if TEMPLATE_NAME not in names:
        if isinstance(inline, str) and inline:
            return inline
        raise VerificationError(
            RejectReason.CHAT_TEMPLATE, "there is none; save the tokenizer with its chat template", file=TEMPLATE_NAME
        )
    with storage_errors(f"reading {TEMPLATE_NAME}"):
        data = read_file(directory / TEMPLATE_NAME, _MAX_TEMPLATE_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise VerificationError(
            RejectReason.CHAT_TEMPLATE, "is not UTF-8; save it again", file=TEMPLATE_NAME
        ) from error
    if inline is not None and inline != text:
        # Readers differ in which of the two they take, and so in the prompts they make.
        raise VerificationError(
            RejectReason.CHAT_TEMPLATE,
            f"differs from the template in {TOKENIZER_CONFIG_NAME}; keep one",
            file=TEMPLATE_NAME,
        )
    return text


def _sha256(path: Path) -> str:
    with storage_errors(f"reading {path.name}"):
        return sha256_hex(read_file(path, 500_000_000))
