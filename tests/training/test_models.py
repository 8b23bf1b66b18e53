"""The exact savings against the plain computation, and adapters merged by us against peft's own result."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from acemath_prompts import PromptEncoder
from acemath_training.data.problem import Problem
from acemath_training.data.rows import collate_sft, reward_row, sft_row
from acemath_training.embedded import merge
from acemath_training.errors import CheckpointError
from acemath_training.jobs import lora
from acemath_training.jobs.config import Lora
from acemath_training.jobs.response_loss import ResponseLoss
from acemath_training.jobs.scored_lists import ListScorer, collate_list

PROBLEMS = [
    Problem("What is 2 + 2?", "2 + 2 = 4\nThe answer is \\boxed{4}.", "4", "test", "test"),
    Problem("Tom has 3 bags with 5 beads.", "3 * 5 = 15\nThe answer is \\boxed{15}.", "15", "test", "test"),
]


def test_shared_prefix_changes_neither_loss_nor_gradient(tiny_base: Path) -> None:
    encoder = PromptEncoder.from_directory(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)
    rows = [sft_row(encoder, problem, 2) for problem in PROBLEMS]
    found = []
    for share in (True, False):
        model.zero_grad()
        loss = ResponseLoss(model)(**collate_sft(rows, 2, share=share))["loss"]
        loss.backward()
        found.append((loss.item(), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_loss_is_the_mean_over_response_tokens(tiny_base: Path) -> None:
    encoder = PromptEncoder.from_directory(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)
    row = sft_row(encoder, PROBLEMS[0], 2)
    logits = model(input_ids=torch.tensor([row.ids])).logits[0]
    wanted = torch.tensor(row.ids[row.prompt_length :])
    expected = functional.cross_entropy(logits[row.prompt_length - 1 : -1], wanted)
    assert ResponseLoss(model)(**collate_sft([row], 2))["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_list_scores_are_those_of_transformers(tiny_base: Path) -> None:
    encoder = PromptEncoder.from_directory(tiny_base)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny_base), dtype=torch.float32, num_labels=1).eval()
    rows = [reward_row(encoder, PROBLEMS[0].problem, text) for text in ("It is 4.", "The answer is 5, I think.")]
    batch = collate_list(rows, [1, 0], 2)
    with torch.inference_mode():
        found = ListScorer(model, "listwise_bt")(**batch)["scores"]
        for index, row in enumerate(rows):
            hidden = model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
            assert found[index].item() == pytest.approx(model.score(hidden).item(), rel=1e-4, abs=1e-5)


def _random_adapter(base: Path, directory: Path) -> torch.nn.Module:
    model = lora.inject(AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16), Lora(r=2, alpha=4))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    lora.save(directory, lora.tensors(model), {"r": 2, "alpha": 4})
    return model


def test_merging_equals_the_adapter_in_place(tiny_base: Path, tmp_path: Path) -> None:
    wrapped = _random_adapter(tiny_base, tmp_path / "adapter").float().eval()
    merged = merge.policy(tiny_base, tmp_path / "adapter", tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(str(merged), dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(plain(ids).logits, wrapped(ids).logits, rtol=0.05, atol=0.02)


def test_merging_twice_gives_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    _random_adapter(tiny_base, tmp_path / "adapter")
    first = merge.policy(tiny_base, tmp_path / "adapter", tmp_path / "first")
    second = merge.policy(tiny_base, tmp_path / "adapter", tmp_path / "second")
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_an_adapter_survives_saving_and_a_wrong_one_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    wrapped = _random_adapter(tiny_base, tmp_path / "adapter")
    values, settings = lora.read(tmp_path / "adapter")
    fresh = lora.inject(AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.bfloat16), Lora(r=2, alpha=4))
    lora.restore(fresh, values, strict=True)
    assert settings == {"r": 2, "alpha": 4}
    for name, value in lora.tensors(wrapped).items():
        assert torch.equal(value, lora.tensors(fresh)[name])
    values.pop(next(iter(values)))
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        lora.restore(fresh, values, strict=True)
