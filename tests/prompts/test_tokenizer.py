"""What is read of a version's tokenizer is gone with it; and it gives the ids that it would give with a cache."""

from __future__ import annotations

import ctypes
import gc
import random
import string
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from acemath_prompts import PromptEncoder, read_tokenizer

MIB = 2**20
_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def allocated() -> int:
    """Bytes that are in use of the C library's heap, whoever's they are: neither resident memory nor a time."""
    gc.collect()
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Mallinfo
    found = ask()
    return int(found.uordblks + found.hblkhd)


def words(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=8)) for _ in range(count))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc since 2.33 tells it")
def test_a_version_that_goes_leaves_nothing_behind_in_the_threads_that_used_it(checkpoint: Path) -> None:
    """The library's own cache left 10 times 1.8 MiB."""
    texts = [words(seed, 4000) for seed in range(10)]
    PromptEncoder.from_directory(checkpoint).encode_prompt([{"role": "user", "content": texts[0]}])
    before = allocated()
    for text in texts:
        assert PromptEncoder.from_directory(checkpoint).encode_prompt([{"role": "user", "content": text}])
    assert allocated() - before < 4 * MIB


def test_the_ids_are_those_of_the_library(checkpoint: Path) -> None:
    document = (checkpoint / "tokenizer.json").read_text()
    ours, plain = read_tokenizer(document), Tokenizer.from_str(document)
    for text in (words(1, 50), "Tom has 3 apples and buys 4 more.", "\\boxed{7}\n\n  ☃ 10 000", "", "<|im_end|>"):
        assert ours.encode(text).ids == plain.encode(text).ids == ours.encode(text).ids


def test_what_the_file_says_of_length_does_not_count(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_str((checkpoint / "tokenizer.json").read_text())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    read = read_tokenizer(tokenizer.to_str())
    assert len(read.encode("Tom has 3 apples and buys 4 more.").ids) not in (4, 64)
