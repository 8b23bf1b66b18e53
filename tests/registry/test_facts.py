import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.tiny import VOCABULARY

from acemath_registry import ModelKind, RejectReason, VerificationError
from acemath_registry.facts import ARCHITECTURES, compute_facts
from acemath_registry.manifest import ComputedFacts
from acemath_registry.tensors import read_tensors


def facts_of(directory: Path) -> ComputedFacts:
    names = {path.name for path in directory.iterdir()}
    return compute_facts(directory, names, read_tensors(directory, names))


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({key: value for key, value in document.items() if value != "gone"}))


@pytest.mark.parametrize(("architecture", "kind"), ARCHITECTURES.items())
def test_kind_follows_architecture(make_checkpoint: Callable[..., Path], architecture: str, kind: ModelKind) -> None:
    directory = make_checkpoint()
    edit(directory / "config.json", architectures=[architecture])
    facts = facts_of(directory)
    assert (facts.kind, facts.architecture, facts.dtype) == (kind, architecture, "bfloat16")
    assert (facts.compatibility.vocab_size, facts.compatibility.max_length) == (VOCABULARY, 48)


@pytest.mark.parametrize("limit", ["gone", 10**30, 1e30, None, -1, 100, "many"])
def test_the_models_own_limit_holds(make_checkpoint: Callable[..., Path], limit: Any) -> None:
    directory = make_checkpoint()
    edit(directory / "tokenizer_config.json", model_max_length=limit)
    assert facts_of(directory).compatibility.max_length == 64


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config.json", {"architectures": ["GPT2LMHeadModel"]}, RejectReason.ARCHITECTURE),
        ("config.json", {"architectures": []}, RejectReason.ARCHITECTURE),
        ("config.json", {"architectures": [{}]}, RejectReason.ARCHITECTURE),
        ("config.json", {"architectures": "LlamaForCausalLM"}, RejectReason.ARCHITECTURE),
        ("config.json", {"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]}, RejectReason.ARCHITECTURE),
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, RejectReason.AUTO_MAP),
        ("tokenizer_config.json", {"auto_map": None}, RejectReason.AUTO_MAP),
        ("config.json", {"vocab_size": 0}, RejectReason.CONFIG_MALFORMED),
        ("config.json", {"vocab_size": "8"}, RejectReason.CONFIG_MALFORMED),
        ("config.json", {"vocab_size": True}, RejectReason.CONFIG_MALFORMED),
        ("config.json", {"max_position_embeddings": "gone"}, RejectReason.CONFIG_MALFORMED),
        ("tokenizer_config.json", {"chat_template": "another"}, RejectReason.CHAT_TEMPLATE),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, RejectReason.CHAT_TEMPLATE),
    ],
)
def test_configs_that_are_refused(
    make_checkpoint: Callable[..., Path], file: str, changes: dict[str, Any], reason: RejectReason
) -> None:
    directory = make_checkpoint()
    edit(directory / file, **changes)
    with pytest.raises(VerificationError) as caught:
        facts_of(directory)
    assert caught.value.reason is reason


def test_auto_map_may_be_a_token(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    (directory / "vocab.json").write_text('{"auto_map": 0}')
    assert facts_of(directory).kind is ModelKind.POLICY


def test_the_template_may_lie_in_the_tokenizers_config(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    expected = facts_of(directory)
    edit(directory / "tokenizer_config.json", chat_template="{{ messages }}")
    assert facts_of(directory) == expected
    (directory / "chat_template.jinja").unlink()
    assert facts_of(directory) == expected
    edit(directory / "tokenizer_config.json", chat_template="gone")
    with pytest.raises(VerificationError) as caught:
        facts_of(directory)
    assert caught.value.reason is RejectReason.CHAT_TEMPLATE


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_required_files(make_checkpoint: Callable[..., Path], name: str) -> None:
    directory = make_checkpoint()
    (directory / name).unlink()
    with pytest.raises(VerificationError) as caught:
        facts_of(directory)
    assert (caught.value.reason, caught.value.file) == (RejectReason.FILE_MISSING, name)


def test_bytes_that_are_no_text(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(VerificationError) as caught:
        facts_of(directory)
    assert caught.value.reason is RejectReason.CHAT_TEMPLATE
