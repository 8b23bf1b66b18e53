"""The two-layer head of Qwen2.5-Math-RM, and products with prepacked weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reward.engine.drawing import OWN, PROMPTS, engine_of, step
from reward.tiny import SHAPE
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2ForSequenceClassification

from acemath_reward.engine.config import parse_config
from acemath_reward.engine.device import place
from acemath_reward.engine.linear import TiledLinear, prepacks
from acemath_reward.engine.model import load_engine
from acemath_reward.ports import PromptGroup, UnsupportedCheckpoint

HIDDEN = SHAPE["hidden_size"]


@pytest.fixture(scope="module")
def math_rm(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint laid out as Qwen2.5-Math-RM's: two maps in the head, and a language model's head left over."""
    directory = tmp_path_factory.mktemp("math-rm")
    torch.manual_seed(4)
    head = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    tensors = load_file(qwen2 / "model.safetensors")
    del tensors["score.weight"]
    tensors |= {f"score.{name}": value.to(torch.bfloat16) for name, value in head.state_dict().items()}
    tensors["lm_head.weight"] = torch.zeros(SHAPE["vocab_size"], HIDDEN, dtype=torch.bfloat16)
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((qwen2 / "config.json").read_text()) | {"architectures": ["Qwen2ForRewardModel"]}
    del config["id2label"]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def reference(math_rm: Path, qwen2: Path) -> list[float]:
    """As `modeling_qwen2_rm.py` of the checkpoint's authors: trunk, Linear, ReLU, Linear, at the last token."""
    tensors = load_file(math_rm / "model.safetensors")
    trunk = Qwen2ForSequenceClassification.from_pretrained(qwen2, dtype=torch.float32).eval().model
    head = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    head.load_state_dict({name: tensors[f"score.{name}"].float() for name in head.state_dict()})
    with torch.inference_mode():
        return [head(trunk(torch.tensor([PROMPTS[4] + own])).last_hidden_state[0, -1]).item() for own in OWN]


def test_the_two_layer_head_is_that_of_its_authors(math_rm: Path, qwen2: Path) -> None:
    found = engine_of(math_rm, "float32").score([PromptGroup(PROMPTS[4], OWN)])[0]
    assert found == pytest.approx(reference(math_rm, qwen2), abs=2e-5)
    assert max(found) - min(found) > 0.01


def test_the_two_layer_head_is_free_of_its_batch(math_rm: Path) -> None:
    engine = engine_of(math_rm)
    alone = [engine.score([PromptGroup(PROMPTS[2], (own,))])[0][0] for own in OWN]
    assert engine.score([PromptGroup(PROMPTS[2], OWN[::-1])])[0][::-1] == alone
    session = engine.open(PROMPTS[2])
    for candidate, own in enumerate(OWN):
        session.extend(candidate, own)
        session.finish(candidate)
    assert step(engine, [session]) == [dict(enumerate(alone))]
    session.close()


def test_process_reward_models_are_refused(qwen2: Path) -> None:
    config = json.loads((qwen2 / "config.json").read_text())
    with pytest.raises(UnsupportedCheckpoint, match="Qwen2ForProcessRewardModel"):
        parse_config(config | {"architectures": ["Qwen2ForProcessRewardModel"]})


def test_a_second_layer_that_is_missing_is_refused(math_rm: Path, tmp_path: Path) -> None:
    tensors = load_file(math_rm / "model.safetensors")
    del tensors["score.2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((math_rm / "config.json").read_text())
    with pytest.raises(UnsupportedCheckpoint, match=r"missing: score\.2\.bias"):
        load_engine(tmp_path, place("cpu", "float32", threads=1))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_prepacked_weights_give_the_scores_of_plain_ones(kind: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(kind)
    group = [PromptGroup(PROMPTS[3], OWN)]
    packed = engine_of(directory).score(group)[0]
    assert packed == pytest.approx(engine_of(directory, prepack=False).score(group)[0], abs=0.1)
    assert engine_of(directory).facts()["prepacked"] == prepacks(place("cpu", "bfloat16", threads=1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("biased", [True, False])
def test_a_row_has_the_same_bits_at_every_place_of_a_tile(dtype: str, biased: bool) -> None:
    placement = place("cpu", dtype, threads=1, row_tile=32)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(80, 48, generator=generator).to(placement.dtype)
    bias = torch.randn(80, generator=generator).to(placement.dtype) if biased else None
    x = torch.randn(32, 48, generator=generator).to(placement.dtype)
    product = TiledLinear(weight, bias, placement)
    whole = product(x)
    assert torch.equal(product(x.flip(0)).flip(0), whole)
    others = x.clone()
    others[1:] = 7.0
    assert torch.equal(product(others)[0], whole[0])
    exact = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    assert (whole.double() - exact).abs().max() < (0.2 if dtype == "bfloat16" else 1e-4)


def test_a_library_without_prepacking_is_no_loss(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not on this CPU")

    group = [PromptGroup(PROMPTS[3], OWN)]
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse, raising=False)
    engine = load_engine(llama, place("cpu", "bfloat16", threads=1, cell_tokens=16))
    assert engine.score(group) == engine_of(llama, prepack=False).score(group)
