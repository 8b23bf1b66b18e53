"""Values that a server can check before it serves a version: computed here, by plain transformers.

Teacher-forced (fixed token ids, never sampled text), so that they do not depend on batching or seeds.
"""

import json
from importlib import resources
from pathlib import Path

import torch
from pydantic import JsonValue
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from acemath_core.prompts import ChatMessage, policy_messages, reward_messages
from acemath_prompts import PromptEncoder


def cases() -> list[dict[str, str]]:
    """The fixed problems and solutions, right and wrong, of `canary.json`."""
    text = (resources.files("acemath_training.embedded") / "canary.json").read_text("utf-8")
    loaded: list[dict[str, str]] = json.loads(text)
    return loaded


@torch.inference_mode()
def policy(checkpoint: Path) -> dict[str, JsonValue]:
    """Token ids of conversations and the log-probability of each token after the first.

    Returns:
        `{"cases": [{"messages": [turn], "token_ids": [n], "logprobs": [n - 1]}], "dtype": "bfloat16"}`, natural
        logarithms.
    """
    encoder = PromptEncoder.from_directory(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.bfloat16).eval()
    found: list[JsonValue] = []
    for case in cases():
        turns = [*policy_messages(case["problem"]), ChatMessage(role="assistant", content=case["solution"])]
        ids = torch.tensor(encoder.encode_conversation(turns))
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        values = [round(value, 5) for value in chosen.tolist()]
        found.append({"messages": _plain(turns), "token_ids": ids.tolist(), "logprobs": values})
    return {"cases": found, "dtype": "bfloat16"}


@torch.inference_mode()
def reward(checkpoint: Path) -> dict[str, JsonValue]:
    """Token ids of scored conversations with their score, read at the last token.

    Returns:
        `{"cases": [{"messages": [turn], "token_ids": [n], "score": float}], "dtype": "bfloat16"}`.
    """
    encoder = PromptEncoder.from_directory(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(str(checkpoint), dtype=torch.bfloat16).eval()
    found: list[JsonValue] = []
    for case in cases():
        turns = reward_messages(case["problem"], case["solution"])
        ids = encoder.encode_conversation(turns)
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].float()
        score = (hidden * model.score.weight[0].float()).sum().item()
        found.append({"messages": _plain(turns), "token_ids": list(ids), "score": round(score, 5)})
    return {"cases": found, "dtype": "bfloat16"}


def _plain(turns: list[ChatMessage]) -> JsonValue:
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
