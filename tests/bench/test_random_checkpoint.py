from __future__ import annotations

import json
from pathlib import Path

from reward.tiny import write_tokenizer

from bench.reward.random_checkpoint import SHAPES, make


def test_a_random_checkpoint_is_one_that_the_engine_serves(tmp_path: Path) -> None:
    from acemath_reward.engine.device import place
    from acemath_reward.engine.model import load_engine
    from acemath_reward.ports import PromptGroup

    tokenizer = tmp_path / "of"
    tokenizer.mkdir()
    write_tokenizer(tokenizer)
    (tokenizer / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}))
    make("tiny", tokenizer, tmp_path / "made")
    assert (tmp_path / "made" / "tokenizer.json").is_file()
    engine = load_engine(tmp_path / "made", place("cpu", "float32", threads=1))
    assert engine.vocab_size == SHAPES["tiny"]["vocab_size"]
    first, second = engine.score([PromptGroup((5, 6), ((7, 8), (9,)))])[0]
    assert first != second
