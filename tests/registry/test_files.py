import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_registry import RejectReason, VerificationError
from acemath_registry.files import ALLOWED_NAMES, list_files, reject_reason


@pytest.mark.parametrize("name", [*sorted(ALLOWED_NAMES), "model-00001-of-00002.safetensors"])
def test_allowed(name: str) -> None:
    assert reject_reason(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pytorch_model.bin", RejectReason.PICKLE),
        ("training_args.bin", RejectReason.PICKLE),
        ("optimizer.pt", RejectReason.PICKLE),
        ("state.PKL", RejectReason.PICKLE),
        ("x.pt.gz", RejectReason.PICKLE),
        ("modeling_custom.py", RejectReason.PYTHON_CODE),
        ("kernel.so", RejectReason.PYTHON_CODE),
        (".gitattributes", RejectReason.HIDDEN_FILE),
        (".hidden.bin", RejectReason.HIDDEN_FILE),
        ("../config.json", RejectReason.PATH_TRAVERSAL),
        ("..", RejectReason.PATH_TRAVERSAL),
        ("a\\b", RejectReason.PATH_TRAVERSAL),
        ("adapter_model.safetensors", RejectReason.NAME_NOT_ALLOWED),
        ("model.gguf", RejectReason.NAME_NOT_ALLOWED),
        ("Config.json", RejectReason.NAME_NOT_ALLOWED),
        ("trainer_state.json", RejectReason.NAME_NOT_ALLOWED),
        ("model-1-of-2.safetensors", RejectReason.NAME_NOT_ALLOWED),
    ],
)
def test_refused(name: str, reason: RejectReason) -> None:
    assert reject_reason(name) is reason


@given(st.text(max_size=30))
def test_only_listed_names_pass(name: str) -> None:
    assert (reject_reason(name) is None) == (name in ALLOWED_NAMES)


def test_folders_pipes_and_links(make_checkpoint: Callable[..., Path]) -> None:
    for make, reason in (
        (lambda path: path.mkdir(), RejectReason.NOT_A_FILE),
        (os.mkfifo, RejectReason.NOT_A_FILE),
        (lambda path: path.symlink_to("config.json"), RejectReason.SYMLINK),
        (lambda path: path.symlink_to("nowhere"), RejectReason.SYMLINK),
    ):
        directory = make_checkpoint()
        make(directory / "NOTICE")
        with pytest.raises(VerificationError) as caught:
            list_files(directory)
        assert (caught.value.reason, caught.value.file) == (reason, "NOTICE")


def test_ignored_names_may_still_not_be_links(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    (directory / "manifest.json").symlink_to("config.json")
    with pytest.raises(VerificationError) as caught:
        list_files(directory, ignore=frozenset({"manifest.json"}))
    assert caught.value.reason is RejectReason.SYMLINK
