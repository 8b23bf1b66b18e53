"""What a finished run says about itself; cards are written from it, so figures come from real runs only."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from acemath_training.jobs.config import RewardConfig, SftConfig, fingerprint

FILE = "run.json"


class RunRecord(BaseModel):
    """Configuration, length, data cursor and the last measured values of a run.

    `inputs` are the digests of what its rows were made of, `rows_left_out` how many were longer than allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: dict[str, Any]
    config_sha256: str
    steps: int
    cursor: int
    figures: dict[str, float]
    inputs: dict[str, str] = {}
    rows_left_out: int = 0

    @classmethod
    def of(
        cls, config: SftConfig | RewardConfig, *, steps: int, cursor: int, log: list[dict[str, float]]
    ) -> "RunRecord":
        """The record of a run from its log history (means of the last ten losses, time)."""
        losses = [entry["loss"] for entry in log if "loss" in entry]
        figures = {"train_loss_last": round(sum(losses[-10:]) / max(len(losses[-10:]), 1), 4)}
        figures["train_loss_first"] = round(losses[0], 4) if losses else 0.0
        evaluated = [entry for entry in log if any(key.startswith("eval_") for key in entry)]
        if evaluated:
            figures |= {key: float(value) for key, value in evaluated[-1].items() if key.startswith("eval_")}
        return cls(
            config=json.loads(config.model_dump_json()),
            config_sha256=fingerprint(config),
            steps=steps,
            cursor=cursor,
            figures=figures,
        )

    def write(self, directory: Path) -> None:
        """Save as `run.json`."""
        (directory / FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
