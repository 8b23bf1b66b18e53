"""The recipe of the 7B models in small: full weights, DeepSpeed ZeRO-3, two ranks, one stage after the other."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from acemath_prompts import PromptEncoder
from acemath_registry import ModelKind, PublishMetadata, Registry
from acemath_training.data.rows import collate_sft, conversation_row
from acemath_training.errors import CheckpointError, ConfigError
from acemath_training.jobs import full_weights
from acemath_training.jobs.response_loss import ResponseLoss
from acemath_training.jobs.scored_lists import ListScorer

SHIPPED = Path(__file__).resolve().parents[2] / "training" / "configs" / "acemath-7b"
END_OF_TURN = 2
ROWS = 64

# DeepSpeed leaves tensors of fewer than 10^5 elements whole; these matrices are larger, so a lost gather is seen.
SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def make_base(tokenizer: Path, directory: Path, kind: str) -> Path:
    """A random base that ends at `<|endoftext|>`, as Qwen2.5-Math-7B does: untied Qwen2, or tied Llama."""
    shutil.copytree(tokenizer, directory, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    shutil.copyfile(tokenizer / "tokenizer_config.json", directory / "tokenizer_config.json")
    torch.manual_seed(0)
    model = (
        Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))
        if kind == "qwen2"
        else LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    )
    model.to(torch.bfloat16).save_pretrained(str(directory))
    return directory


def conversation(number: int) -> list[dict[str, str]]:
    """A row that a small model learns something of in a few steps."""
    answer = f"The answer is \\boxed{{{number + 1}}}."
    return [{"role": "user", "content": f"What is {number} + 1?"}, {"role": "assistant", "content": answer}]


def recipe(work: Path, stage: int, **more: Any) -> Path:
    """A shipped job file with its data beside it, in small: one row of the file is longer than allowed."""
    content = yaml.safe_load((SHIPPED / f"general-sft-stage{stage}.yaml").read_text())
    content["training"] |= {"learning_rate": 2e-3, "gradient_accumulation": 2, "save_steps": 8}
    content |= more
    rows = [conversation(number) for number in range(ROWS)]
    rows.insert(7, [rows[0][0], {"role": "assistant", "content": "so " * 1400}])
    file = work / content["data"]["file"]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    path = work / f"stage{stage}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(config: Path, base: Path, output: Path) -> "subprocess.CompletedProcess[str]":
    """The documented command; what it said is shown when a test fails."""
    run = [sys.executable, "-m", "acemath_training.jobs.launch", "sft", str(config)]
    run += ["--base", str(base), "--output", str(output), "--ranks", "2"]
    done = subprocess.run(run, stderr=subprocess.PIPE, text=True, timeout=800)
    sys.stderr.write(done.stderr)
    return done


def losses(output: Path) -> list[float]:
    """In the order of the steps."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def loss_of(checkpoint: Path) -> float:
    """Mean over the conversations, with the checkpoint as transformers and the services load it."""
    encoder = PromptEncoder.from_directory(checkpoint)
    model, report = AutoModelForCausalLM.from_pretrained(
        str(checkpoint), dtype=torch.bfloat16, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    rows = [conversation_row(encoder, conversation(number), END_OF_TURN) for number in range(ROWS)]
    with torch.inference_mode():
        return float(ResponseLoss(model)(**collate_sft(rows, END_OF_TURN, share=False))["loss"])


@pytest.mark.slow
@pytest.mark.timeout(3000)  # each of the three starts imports torch, transformers and deepspeed three times
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: DeepSpeed builds its communication op at first use")
@pytest.mark.parametrize("kind", ["qwen2", "tied-llama"])
def test_two_stages_under_zero_3_end_in_a_checkpoint_that_is_served(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    base = make_base(tiny_base, tmp_path / "base", kind)
    first, second = tmp_path / "general-sft-1", tmp_path / "general-sft-2"
    done = train(recipe(tmp_path, 1), base, first)
    assert done.returncode == 0
    assert f"1 of {ROWS + 1} conversations have more than 4096 tokens and are left out" in done.stderr
    assert train(recipe(tmp_path, 2), first, second).returncode == 0
    _check_stage(first, base)
    _check_stage(second, first / "model")
    assert losses(second)[0] < losses(first)[0]
    assert loss_of(second / "model") < loss_of(first / "model") < loss_of(base)
    described = PublishMetadata(step=ROWS // 4, licence="Apache-2.0")
    registry = Registry(tmp_path / "registry")
    registry.verify(registry.publish(second / "model", name="p", kind=ModelKind.POLICY, metadata=described))
    _check_resumed(second, tmp_path, first)


def _check_stage(output: Path, base: Path) -> None:
    record = json.loads((output / "run.json").read_text())
    assert (record["steps"], record["rows_left_out"]) == (ROWS // 4, 1)
    assert {name.rpartition(" ")[2] for name in record["inputs"]} >= {"tokenizer.json", "chat_template.jinja"}
    marker = json.loads((output / "checkpoint-16" / "COMPLETE.json").read_text())
    assert marker["topology"]["inputs"] == record["inputs"]
    assert losses(output)[-1] < losses(output)[0]
    before, after = load_file(base / "model.safetensors"), load_file(output / "model" / "model.safetensors")
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}
    assert all(value.dtype is torch.bfloat16 and bool(value.isfinite().all()) for value in after.values())
    assert all(not torch.equal(before[name], value) for name, value in after.items() if value.dim() == 2)
    written = GenerationConfig.from_pretrained(str(output / "model"))
    assert written.eos_token_id == [END_OF_TURN, 0]
    assert json.loads((output / "model" / "config.json").read_text())["use_cache"] is True
    assert not list(output.glob(".model-*"))


def _check_resumed(output: Path, work: Path, base: Path) -> None:
    """From the checkpoint in the middle the same weights come out."""
    whole = (output / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(output / "checkpoint-16")
    shutil.rmtree(output / "model")
    assert train(work / "stage2.yaml", base, output).returncode == 0
    assert (output / "model" / "model.safetensors").read_bytes() == whole


@pytest.fixture
def tied(tiny_base: Path) -> Any:
    """The tiny tied Llama."""
    return AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.bfloat16)


def test_a_tensor_that_was_not_gathered_ends_the_run(tied: Any, tiny_base: Path, tmp_path: Path) -> None:
    wrapper = ResponseLoss(tied)
    values = dict(wrapper.state_dict())
    values["model.model.layers.1.mlp.up_proj.weight"] = torch.empty(0, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight is \(0,\), not \(64, 32\)"):
        full_weights.save(wrapper, values, tiny_base, tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_lost_or_foreign_tensor_is_named(tied: Any, tmp_path: Path) -> None:
    values = {name: value.clone() for name, value in tied.state_dict().items() if name != "lm_head.weight"}
    lost = values.pop("model.norm.weight")
    save_file({**values, "other": lost}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing.*other is not the model's"):
        full_weights.verify(tmp_path, tied)


def test_the_folder_is_replaced_whole(tied: Any, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "left.bin").touch()
    made = full_weights.save(ResponseLoss(tied), ResponseLoss(tied).state_dict(), tiny_base, tmp_path)
    assert (made, [path.name for path in tmp_path.iterdir()]) == (tmp_path / "model", ["model"])
    assert not (made / "left.bin").exists()
    assert full_weights.resolve(tmp_path) == made == full_weights.resolve(made)


def test_a_full_weight_reward_model_is_a_complete_checkpoint_too(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny_base), dtype=torch.bfloat16, num_labels=1)
    scorer = ListScorer(model, "listwise_bt")
    made = full_weights.save(scorer, scorer.state_dict(), tiny_base, tmp_path)
    assert torch.equal(load_file(made / "model.safetensors")["score.weight"], model.score.weight)
    described = PublishMetadata(step=1, licence="Apache-2.0")
    Registry(tmp_path / "registry").publish(made, name="r", kind=ModelKind.REWARD, metadata=described)


def test_what_is_no_checkpoint_is_refused_as_a_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"lacks tokenizer\.json.*model\.parent"):
        full_weights.resolve(tmp_path)


def test_generation_ends_at_the_end_of_a_turn(tied: Any) -> None:
    tied.generation_config.eos_token_id = [0]
    full_weights.prepare(tied, END_OF_TURN)
    full_weights.prepare(tied, END_OF_TURN)
    assert tied.generation_config.eos_token_id == [END_OF_TURN, 0]


def test_a_generation_config_that_cannot_be_written_is_found_before_the_first_step(tied: Any) -> None:
    tied.generation_config.do_sample, tied.generation_config.temperature = False, 0.7
    with pytest.raises(ConfigError, match="contradicts itself"):
        full_weights.prepare(tied, END_OF_TURN)
