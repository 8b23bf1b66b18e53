"""Tiny real checkpoints: transformers writes them, so that what our engine reads is what training will export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 384
MAX_TOKENS = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_TOKENS,
    "num_labels": 1,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def write_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["Tom has 3 apples and buys 4 more.\n\nHow many? \\boxed{7}\nuser assistant"] * 4, trainer
    )
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(CHATML)


def make_model(kind: str, seed: int, **changes: Any) -> PreTrainedModel:
    """A random model whose weights are large enough that every part of it shows in the score."""
    torch.manual_seed(seed)
    options = {**SHAPE, "initializer_range": 0.15, **changes}
    if kind == "llama":
        model: PreTrainedModel = LlamaForSequenceClassification(LlamaConfig(**options))
    else:
        model = Qwen2ForSequenceClassification(Qwen2Config(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def write_checkpoint(directory: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    make_model(kind, seed, **changes).to(torch.bfloat16).save_pretrained(directory)
    write_tokenizer(directory)
    return directory
