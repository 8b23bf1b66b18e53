"""Values that a server can check before it serves a version: computed here, by plain transformers.

Teacher-forced (fixed token ids, never sampled text), so that they do not depend on batching or seeds. In float32: from
a reference in bfloat16 good loads of real vLLM were up to 1.8 nats off at single tokens, mostly by its own rounding.
"""

import json
from importlib import resources
from pathlib import Path

import torch
from pydantic import JsonValue
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

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
        `{"cases": [{"messages": [turn], "token_ids": [n], "logprobs": [n - 1]}], "dtype": "float32"}`, natural
        logarithms.
    """
    encoder = PromptEncoder.from_directory(checkpoint)
    model = in_float32(AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.bfloat16))
    found: list[JsonValue] = []
    for case in cases():
        turns = [*policy_messages(case["problem"]), ChatMessage(role="assistant", content=case["solution"])]
        ids = torch.tensor(encoder.encode_conversation(turns))
        logits = model(input_ids=ids[None]).logits[0, :-1]
        chosen = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        values = [round(value, 5) for value in chosen.tolist()]
        found.append({"messages": _plain(turns), "token_ids": ids.tolist(), "logprobs": values})
    return {"cases": found, "dtype": "float32"}


@torch.inference_mode()
def reward(checkpoint: Path) -> dict[str, JsonValue]:
    """Token ids of scored conversations with their score, read at the last token.

    Returns:
        `{"cases": [{"messages": [turn], "token_ids": [n], "score": float}], "dtype": "float32"}`.
    """
    encoder = PromptEncoder.from_directory(checkpoint)
    model = in_float32(AutoModelForSequenceClassification.from_pretrained(str(checkpoint), dtype=torch.bfloat16))
    found: list[JsonValue] = []
    for case in cases():
        turns = reward_messages(case["problem"], case["solution"])
        ids = encoder.encode_conversation(turns)
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        score = (hidden * model.score.weight[0].float()).sum().item()
        found.append({"messages": _plain(turns), "token_ids": list(ids), "score": round(score, 5)})
    return {"cases": found, "dtype": "float32"}


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """The model, each part of which computes in float32 and keeps its weights as they are stored.

    So a checkpoint needs the memory of its own format, and that of one part in float32.
    """
    for part in model.eval().modules():
        if any(True for _ in part.parameters(recurse=False)):
            part.register_forward_pre_hook(_widen)
            part.register_forward_hook(_narrow, always_call=True)
    return model


def _widen(part: torch.nn.Module, _: object) -> None:
    part._stored = {name: weight.data for name, weight in part.named_parameters(recurse=False)}  # type: ignore[assignment]
    for weight in part.parameters(recurse=False):
        weight.data = weight.data.float()


def _narrow(part: torch.nn.Module, *_: object) -> None:
    for name, weight in part.named_parameters(recurse=False):
        weight.data = part._stored[name]  # type: ignore[index]
    del part._stored


def _plain(turns: list[ChatMessage]) -> JsonValue:
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
