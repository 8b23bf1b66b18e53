"""Real jobs on a tiny model: torchrun, DeepSpeed ZeRO-2, two ranks, kill -9 and resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from acemath_training.data import pools
from acemath_training.data.pools import Candidate, Pool
from acemath_training.jobs import lora

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),  # each of up to three starts imports torch, transformers and deepspeed three times
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="no g++: DeepSpeed builds its communication op at first use"
    ),
]


def sft_config(directory: Path, **training: Any) -> Path:
    """A job of a few steps on the easy domain."""
    content = {
        "job": "sft",
        "stage": "test",
        "model": {"base": "tiny", "lora": {"r": 2, "alpha": 4}},
        "data": {"seed": 1, "mixture": [{"kind": "word_problems", "weight": 1}], "max_length": 1000},
        "training": {"learning_rate": 1e-3, "rows_per_device": 2, "max_steps": 4, "save_steps": 2, **training},
    }
    path = directory / "sft.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(job: str, config: Path, base: Path, output: Path) -> list[str]:
    """The documented command line."""
    run = [sys.executable, "-m", "acemath_training.jobs.launch", job, str(config)]
    return [*run, "--base", str(base), "--output", str(output), "--ranks", "2"]


def losses(output: Path) -> dict[int, float]:
    """Loss by step from the metrics file."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_sft_killed_and_resumed_gives_the_same_adapter(tiny_base: Path, tmp_path: Path) -> None:
    config = sft_config(tmp_path, max_steps=12, save_steps=4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command("sft", config, tiny_base, whole), check=True, timeout=540)
    killed.mkdir()
    # However fast the machine: nobody reads this pipe, so rank 0 stands still when it opens it, at the log of step 5.
    os.mkfifo(killed / "metrics.jsonl")
    process = subprocess.Popen(command("sft", config, tiny_base, killed), start_new_session=True)
    end = time.monotonic() + 500
    while not (killed / "checkpoint-4" / "COMPLETE.json").exists() and time.monotonic() < end:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.02)
    _kill_all(process)
    (killed / "metrics.jsonl").unlink()
    assert (killed / "checkpoint-4" / "COMPLETE.json").exists(), "the run was killed before its first checkpoint"
    assert not list(killed.glob("checkpoint-8*")), "the run was not in the middle when it was killed"
    assert not (killed / "adapter.safetensors").exists(), "the run ended before it could be killed"
    subprocess.run(command("sft", config, tiny_base, killed), check=True, timeout=540)
    first, again = lora.read(whole)[0], lora.read(killed)[0]
    assert sorted(first) == sorted(again)
    assert all(bool((first[name] == again[name]).all()) for name in first)
    assert json.loads((whole / "run.json").read_text())["steps"] == 12
    assert min(losses(whole)) == 5 and min(losses(killed)) == 5 and (killed / "checkpoint-12").exists()


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL the launcher, torchrun and its ranks, which torchrun starts in sessions of their own."""
    family, found = {process.pid}, True
    while found:
        found = False
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            pid = int(entry.parent.name)
            if int(fields[1]) in family and pid not in family:
                family.add(pid)
                found = True
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(30)


def test_reward_model_learns_from_lists(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "candidates.jsonl"
    for number in range(12):
        made = [Candidate(text=f"{text} {number}", correct=text == "yes", score=0.0) for text in ("yes", "no", "maybe")]
        pools.append(file, Pool(problem=f"{number}?", answer="1", source="s", family="f", candidates=tuple(made)))
    content = {
        "job": "reward_model",
        "stage": "test",
        "model": {"base": "tiny", "lora": {"r": 2, "alpha": 4}},
        "data": {"file": file.name, "validation_fraction": 0.25},
        "training": {"learning_rate": 5e-3, "rows_per_device": 1, "gradient_accumulation": 2, "max_steps": 10},
    }
    config = tmp_path / "reward.yaml"
    config.write_text(yaml.safe_dump(content))
    subprocess.run(command("reward_model", config, tiny_base, tmp_path / "rm"), check=True, timeout=540)
    record = json.loads((tmp_path / "rm" / "run.json").read_text())
    assert record["figures"]["validation_problems"] == 3
    assert record["figures"]["train_loss_last"] < 0.75
    assert lora.read(tmp_path / "rm")[0]["score.weight"].shape == (1, 32)


def test_a_wrong_configuration_is_one_sentence(tiny_base: Path, tmp_path: Path) -> None:
    config = sft_config(tmp_path, learning_rat=1)
    run = [sys.executable, "-m", "acemath_training.jobs.launch", "--worker", "sft", str(config)]
    done = subprocess.run(
        [*run, "--base", str(tiny_base), "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "training.learning_rat" in done.stderr
    assert "Traceback" not in done.stderr
