"""A stage's adapter, as PEFT reads it and as the registry publishes it: one model."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from acemath_registry import PublishMetadata, Registry
from acemath_training.embedded import merge
from acemath_training.jobs import lora
from acemath_training.jobs.config import Lora


def test_what_a_stage_leaves_is_published_on_its_base(tiny_base: Path, tmp_path: Path) -> None:
    settings = Lora(r=2, alpha=4)
    model = lora.inject(AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.bfloat16), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    values = lora.tensors(model)
    lora.save(tmp_path / "run", values, {"r": 2, "alpha": 4})
    lora.save_for_peft(tmp_path / "run" / lora.PEFT, values, settings)

    registry, metadata = Registry(tmp_path / "registry"), PublishMetadata(step=1, licence="Apache-2.0")
    base = registry.publish(tiny_base, name="base", kind="policy", metadata=metadata)
    source = tmp_path / "run" / lora.PEFT
    ref = registry.publish(source, name="pol", kind="policy", metadata=metadata, adapter_of=base)
    served = load_file(registry.private_copy(ref, tmp_path / "cache") / "model.safetensors")

    plain = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.bfloat16)
    by_peft = peft.PeftModel.from_pretrained(plain, str(source)).merge_and_unload().state_dict()
    by_training = merge.merged(tiny_base, tmp_path / "run")
    assert served.keys() == by_training.keys()
    for name, weight in served.items():
        torch.testing.assert_close(weight, by_training[name], rtol=2**-7, atol=0, msg=name)  # it rounds twice
        torch.testing.assert_close(weight, by_peft[name], rtol=2**-6, atol=2**-7, msg=name)
    assert any(
        not torch.equal(weight, load_file(tiny_base / "model.safetensors")[name]) for name, weight in served.items()
    )
