"""What the trainer writes into a manifest is what a good load reproduces and a wrong model does not."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from acemath_policy.canary import Canary, CanaryMismatch, Tolerance, check
from acemath_policy.settings import PolicySettings
from acemath_training.embedded import canary

SEEDS = range(5)
FIELDS = PolicySettings.model_fields
TOLERANCE = Tolerance(FIELDS["canary_mean_tolerance"].default, FIELDS["canary_max_tolerance"].default)


class Engine:
    """A model that is shown token ids."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    async def prompt_logprobs(self, token_ids: tuple[int, ...], timeout: float) -> list[float]:
        ids = torch.tensor(token_ids)
        logits = self.model(input_ids=ids[None]).logits[0, :-1].float()
        found: list[float] = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0].tolist()
        return found


@pytest.fixture(scope="module", params=SEEDS)
def checkpoint(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sure of its next tokens as a trained model: weights large enough that every part of it shows."""
    directory = tmp_path_factory.mktemp(f"policy-{request.param}") / "export"
    shutil.copytree(tiny_base, directory)
    torch.manual_seed(request.param)
    config = LlamaConfig.from_pretrained(str(directory), initializer_range=0.15)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module")
def told(checkpoint: Path) -> Canary:
    return Canary.of(canary.policy(checkpoint))


def load(checkpoint: Path, dtype: torch.dtype = torch.bfloat16, attention: str = "sdpa") -> LlamaForCausalLM:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
        str(checkpoint), dtype=dtype, attn_implementation=attention
    )
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
async def test_a_good_load_passes(checkpoint: Path, told: Canary, dtype: torch.dtype, attention: str) -> None:
    """Twenty of them: five models, two number formats, two ways to attend."""
    mean, largest = await check(told, Engine(load(checkpoint, dtype, attention)), TOLERANCE, 1)
    assert mean < TOLERANCE.mean / 3 and largest < TOLERANCE.largest / 3


@torch.inference_mode()
def test_the_reference_is_that_of_float32_and_leaves_the_weights_as_they_are(checkpoint: Path) -> None:
    stored = load(checkpoint)
    before = {name: weight.clone() for name, weight in stored.named_parameters()}
    ids = torch.arange(1, 60)[None]
    exact = load(checkpoint, torch.float32)(input_ids=ids).logits
    assert torch.allclose(canary.in_float32(stored)(input_ids=ids).logits, exact, atol=1e-4, rtol=0)
    assert all(torch.equal(weight, before[name]) for name, weight in stored.named_parameters())
    assert {weight.dtype for weight in stored.parameters()} == {torch.bfloat16}


def left_at_zero(model: LlamaForCausalLM) -> None:
    model.model.layers[1].mlp.down_proj.weight.data.zero_()


def uninitialised(model: LlamaForCausalLM) -> None:
    model.model.layers[0].self_attn.o_proj.weight.data.normal_(std=0.15)


def swapped_layers(model: LlamaForCausalLM) -> None:
    first, second = (copy.deepcopy(layer.state_dict()) for layer in model.model.layers)
    model.model.layers[0].load_state_dict(second)
    model.model.layers[1].load_state_dict(first)


def stale_tied_head(model: LlamaForCausalLM) -> None:
    """The head is an earlier version's copy of the embedding, as after a reload that forgot it."""
    earlier = model.model.embed_tokens.weight.data + torch.randn(259, 32).to(torch.bfloat16) * 0.05
    model.lm_head.weight = torch.nn.Parameter(earlier)


def rounded_to_eight_bits(model: LlamaForCausalLM) -> None:
    for weight in model.parameters():
        weight.data = (weight.data * 4).to(torch.float8_e5m2).to(torch.bfloat16) / 4


@pytest.mark.parametrize("fault", [left_at_zero, uninitialised, swapped_layers, stale_tied_head, rounded_to_eight_bits])
async def test_a_wrong_model_does_not(
    checkpoint: Path, told: Canary, fault: Callable[[LlamaForCausalLM], None]
) -> None:
    model = load(checkpoint)
    torch.manual_seed(1)
    fault(model)
    with pytest.raises(CanaryMismatch, match="log-probabilities differ"):
        await check(told, Engine(model), TOLERANCE, 1)
