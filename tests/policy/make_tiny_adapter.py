"""`python make_tiny_adapter.py DIR`: a tiny policy, a LoRA of PEFT on it, and what plain transformers makes of both.

    DIR/base            the policy, as `make_tiny_llama` writes it
    DIR/adapter         what PEFT saves
    DIR/flipped         the same, one of its tensors with the other sign
    DIR/expected.json   `canary` as in a manifest, of the model that PEFT merges; of a `prompt` (token ids) the greedy
                        continuations by `base` and `merged`

A process of its own, so that importing torch and transformers touches no test.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import make_tiny_llama

PROMPT_TOKENS, NEW_TOKENS, CANARY_TOKENS = 150, 20, 48
PROMPT_SEED = 103  # of a prompt where no token is a narrow choice
NARROW = 0.01  # a lead of a logit; another engine differs by less
FLIPPED = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    make_tiny_llama.main(directory / "base", 0)
    # In float32, as the server of the test: bfloat16 is computed differently on every kind of processor.
    base = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32).eval()
    prompt, canary = token_ids(PROMPT_TOKENS, PROMPT_SEED), token_ids(CANARY_TOKENS, 1000)
    expected = {"prompt": prompt[0].tolist(), "base": greedy(base, prompt)}
    merged = adapt(base, directory / "adapter")
    flip(directory / "adapter", directory / "flipped")
    expected |= {"merged": greedy(merged, prompt), "canary": {"cases": [case(merged, canary)], "dtype": "float32"}}
    (directory / "expected.json").write_text(json.dumps(expected))


def token_ids(count: int, seed: int) -> Any:
    """(1, count) ids that are no control tokens."""
    import torch

    first, last = len(make_tiny_llama.VOCAB), len(make_tiny_llama.VOCAB) + 256
    return torch.randint(first, last, (1, count), generator=torch.Generator().manual_seed(seed))


def adapt(base: Any, into: Path) -> Any:
    """A random adapter that says other things than its base; the model that PEFT merges."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # PEFT begins at zero, which changes nothing
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(into)
    return adapted.merge_and_unload().to(torch.bfloat16).float()  # rounded once, as the registry does


def greedy(model: Any, prompt: Any) -> list[int]:
    """The continuation, of which every token leads clearly: who computes a little differently finds the same."""
    import torch

    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    first, second = torch.stack(made.logits).float().topk(2).values.unbind(-1)
    assert (first - second).min() > NARROW, "take another PROMPT_SEED"
    continuation: list[int] = made.sequences[0, prompt.shape[1] :].tolist()
    return continuation


def case(model: Any, ids: Any) -> dict[str, list[float]]:
    """One case of a canary."""
    import torch

    with torch.inference_mode():
        logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return {"token_ids": ids[0].tolist(), "logprobs": logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()}


def flip(adapter: Path, into: Path) -> None:
    """A copy that is damaged and nevertheless well formed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, into)
    tensors = load_file(into / "adapter_model.safetensors")
    tensors[FLIPPED] = -tensors[FLIPPED]
    save_file(tensors, into / "adapter_model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
