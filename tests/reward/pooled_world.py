"""Reward services whose versions are computed by vLLM servers: the double's, or real vLLM's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from loopback_ports import free_run
from pydantic import SecretStr
from reward.publishing import publish_reward
from reward.tiny import write_checkpoint
from reward.world import World
from safetensors.torch import load_file, save_file
from torch import nn

import doubles.fake_vllm
from acemath_core.processes import shim
from acemath_registry import ModelRef, Registry
from acemath_reward.pooled.model import PooledLoader
from acemath_reward.settings import EngineKind, RewardSettings, inherited_environment

FAKE_VLLM = Path(doubles.fake_vllm.__file__)
KEY = SecretStr("the internal key")
SHAPE: dict[str, int] = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 64: as small as vLLM takes them on a CPU."""


def pooled_settings(directory: Path, **changes: Any) -> RewardSettings:
    """A service that runs doubles and does everything soon."""
    ports = free_run(6)
    chosen = {
        "registry_root": directory / "registry",
        "cache_dir": directory / "cache",
        "engine": EngineKind.VLLM,
        "vllm_command": (sys.executable, str(FAKE_VLLM)),
        "port": ports,
        "first_vllm_port": ports + 1,
        "last_vllm_port": ports + 5,
        "poll_seconds": 0.05,
        "probe_seconds": 0.1,
        "start_timeout_seconds": 30,
        "stuck_seconds": 5,
        "drain_quiet_seconds": 0,
        "retry_max_seconds": 0.05,
    }
    return RewardSettings(**(chosen | changes))


def give_two_layers(checkpoint: Path) -> None:
    """Make a Qwen2 checkpoint one laid out as Qwen2.5-Math-RM: two maps in the head, and no label's name."""
    torch.manual_seed(4)
    hidden = SHAPE["hidden_size"]
    head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
    nn.init.normal_(head[2].weight)  # so large that scores lie apart
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["score.weight"]
    tensors |= {f"score.{name}": value.to(torch.bfloat16) for name, value in head.state_dict().items()}
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text()) | {"architectures": ["Qwen2ForRewardModel"]}
    del config["id2label"]
    (checkpoint / "config.json").write_text(json.dumps(config))


class PooledWorld(World):
    """A registry and a reconciler whose versions are doubles of vLLM.

    Args:
        environment: further variables of the doubles.
        changes: of `pooled_settings`.
    """

    def __init__(self, directory: Path, environment: dict[str, str] | None = None, **changes: Any) -> None:
        settings = pooled_settings(directory, **changes)
        self.control = directory / "control.json"
        inherited = inherited_environment() | {"FAKE_VLLM_CONTROL": str(self.control)} | (environment or {})
        super().__init__(Registry(settings.registry_root), directory, settings)
        self.make = PooledLoader(settings, inherited, KEY)

    def publish(self, seed: int, **more: Any) -> ModelRef:
        """The version of this seed, published once."""
        if seed not in self.versions:
            checkpoint = write_checkpoint(self.directory / f"export-{seed}", "llama", seed, **SHAPE)
            self.versions[seed] = publish_reward(self.registry, checkpoint, **more)
        return self.versions[seed]

    def tell(self, **faults: Any) -> None:
        """What the doubles do from now on."""
        partial = self.control.with_suffix(".new")
        partial.write_text(json.dumps(faults))
        partial.replace(self.control)

    def trees(self) -> list[list[int]]:
        """The processes of each version that has a server, the shim first."""
        servers: list[Any] = [slot.server for slot in self.reconciler._slots if slot.server is not None]
        shims = [server._child.tree.pid for server in servers if server._child is not None]
        return [[pid, *shim.descendants(pid)] for pid in shims if pid is not None]
