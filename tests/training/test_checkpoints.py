"""A checkpoint is whole and of this run's topology, or resuming says why not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from acemath_training.errors import CheckpointError
from acemath_training.jobs.callbacks import JsonlMetrics, TimeLimit
from acemath_training.jobs.checkpoint_guard import (
    MARKER,
    CheckpointGuard,
    Topology,
    complete_checkpoints,
    find_resumable,
)

TOPOLOGY = Topology(world_size=2, rows_per_device=8, gradient_accumulation=1, seed=0, zero_stage=2, config_sha256="a")


def save(output: Path, step: int, topology: Topology = TOPOLOGY) -> Path:
    """A checkpoint folder as Trainer leaves it, marked by the guard."""
    directory = output / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    (directory / "state.bin").write_bytes(b"x" * step)
    state = TrainerState(global_step=step, is_world_process_zero=True)
    CheckpointGuard(topology).on_save(SimpleNamespace(output_dir=str(output)), state, TrainerControl())
    return directory


def test_the_newest_complete_one_is_resumed_and_an_incomplete_one_moved_aside(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "checkpoint-10").mkdir()
    assert find_resumable(tmp_path, TOPOLOGY) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()
    assert len(list(tmp_path.glob("incomplete-checkpoint-10-*"))) == 1


def test_only_the_newest_two_stay(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save(tmp_path, step)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert find_resumable(tmp_path, TOPOLOGY) is None


@pytest.mark.parametrize("change", [{"world_size": 1}, {"config_sha256": "b"}, {"rows_per_device": 4}])
def test_another_topology_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    save(tmp_path, 5)
    name = next(iter(change))
    with pytest.raises(CheckpointError, match=f"{name} was"):
        find_resumable(tmp_path, TOPOLOGY.model_copy(update=change))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    directory = save(tmp_path, 5)
    (directory / "state.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"state\.bin"):
        find_resumable(tmp_path, TOPOLOGY)


def test_a_damaged_marker_is_an_error_not_a_crash(tmp_path: Path) -> None:
    (save(tmp_path, 5) / MARKER).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        find_resumable(tmp_path, TOPOLOGY)


def test_metrics_are_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = JsonlMetrics(tmp_path / "metrics.jsonl")
    for step in (5, 10):
        state = TrainerState(global_step=step, max_steps=10, is_world_process_zero=True)
        metrics.on_log(SimpleNamespace(), state, TrainerControl(), logs={"loss": 1.0 / step})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(5, 0.2), (10, 0.1)]
    assert "step 10/10" in capsys.readouterr().out


def test_the_time_limit_saves_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0, 161.0])
    monkeypatch.setattr("acemath_training.jobs.callbacks.time.monotonic", lambda: next(clock))
    limit, state = TimeLimit(minutes=1.0), TrainerState()
    limit.on_step_begin(SimpleNamespace(), state, TrainerControl())
    assert not limit.on_step_end(SimpleNamespace(), state, TrainerControl()).should_training_stop
    control = limit.on_step_end(SimpleNamespace(), state, TrainerControl())
    assert control.should_training_stop
    assert control.should_save
