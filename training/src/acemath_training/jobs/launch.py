"""Starts a job under torchrun with the environment DeepSpeed on a CPU needs.

The parent (`launch`) picks ranks and threads and starts `torch.distributed.run` on this same module; the
children (`--worker`) run the job.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from acemath_training import settings
from acemath_training.architecture import END_OF_TURN
from acemath_training.errors import TrainingError


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m acemath_training.jobs.launch`; returns the exit status."""
    options = _parser().parse_args(arguments)
    if not options.worker:
        return launch(options)
    try:
        _work(options)
    except TrainingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def launch(options: argparse.Namespace) -> int:
    """Run the job in `ranks` processes of `threads` threads each and wait for it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
    command += ["-m", "acemath_training.jobs.launch", "--worker", options.job, str(options.config)]
    command += ["--base", str(options.base), "--output", str(options.output)]
    return subprocess.run(command, env=settings.torchrun(options.threads), check=False).returncode


def _work(options: argparse.Namespace) -> None:
    # These imports take seconds and need the [train] extra; the parent does without them.
    from acemath_prompts import PromptEncoder  # noqa: PLC0415
    from acemath_training.jobs import config as configs  # noqa: PLC0415
    from acemath_training.jobs import full_weights  # noqa: PLC0415

    base = full_weights.resolve(options.base)
    encoder = PromptEncoder.from_directory(base)
    if options.job == "sft":
        from acemath_training.jobs import sft  # noqa: PLC0415

        config = configs.load(options.config, configs.SftConfig)
        sft.run(config, base, options.output, encoder, _end_of_turn(base))
    else:
        from acemath_training.jobs import reward_model  # noqa: PLC0415

        reward = configs.load(options.config, configs.RewardConfig)
        reward_model.run(reward, base, options.output, encoder)
    _leave_together()


def _leave_together() -> None:
    """Wait for the rank that still writes, then end the process group.

    A rank that leaves alone takes the group's threads down while they run, and gloo ends it with SIGABRT at times; the
    launcher then kills the rank that writes.
    """
    from torch import distributed  # noqa: PLC0415

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _end_of_turn(base: Path) -> int:
    from tokenizers import Tokenizer  # noqa: PLC0415

    found = Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id(END_OF_TURN)
    if found is None:
        raise TrainingError(f"{base} has no {END_OF_TURN} token")
    return int(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="acemath_training.jobs.launch", description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("job", choices=["sft", "reward_model"])
    parser.add_argument("config", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="checkpoint folder, or a finished full-weight stage")
    parser.add_argument("--output", type=Path, required=True, help="where checkpoints and the result go")
    parser.add_argument("--ranks", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
