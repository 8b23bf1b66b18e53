"""Tiny checkpoints that cannot be mistaken for one another: a policy that writes one letter, a random reward model."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
ALPHABET = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As wide as SmolLM2-135M: vLLM's attention on a CPU with AMX needs a linear layer of some width beside it.
SHAPE = {
    "vocab_size": len(SPECIAL) + len(ALPHABET), "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def write_policy(directory: Path, letter: str) -> Path:
    """A policy whose every token is `letter`: nothing is added to the embedding, which is the same for all tokens."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.fill_(1.0)
    model.lm_head.weight.zero_()
    model.lm_head.weight[len(SPECIAL) + ALPHABET.index(letter)] = 0.1  # a logit of 57.6 beside zeros
    return _write(directory, model)


def write_reward(directory: Path, seed: int) -> Path:
    """A random reward model."""
    torch.manual_seed(seed)
    return _write(directory, LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1, initializer_range=0.1)))


def _write(directory: Path, model: LlamaForCausalLM | LlamaForSequenceClassification) -> Path:
    model.to(torch.bfloat16).save_pretrained(directory)
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *ALPHABET))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], bos_token=SPECIAL[2], eos_token=SPECIAL[3],
        model_max_length=SHAPE["max_position_embeddings"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return directory
