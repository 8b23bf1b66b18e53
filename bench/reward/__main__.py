"""`python -m bench.reward`, from the checkout's root: the reward engine beside its competitors. See README.md.

python -m bench.reward run CHECKPOINT --out bench/results/reward-NAME.json --infinity DIR/bin/python
python -m bench.reward table bench/results/reward-NAME.json
python -m bench.reward plot bench/results/reward-NAME.json
python -m bench.reward make-sets CHECKPOINT POOL.jsonl…
python -m bench.reward make-random --shape qwen2-7b --tokenizer-of CHECKPOINT DIRECTORY
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acemath_prompts import PromptEncoder
from bench.reward import machine
from bench.reward.catalogue import Setup, defaults, legs
from bench.reward.groups import beginning
from bench.reward.make_sets import make_sets, pool_set
from bench.reward.random_checkpoint import SHAPES, make
from bench.reward.record import Record, read_result, say
from bench.reward.run import Plan, Runner
from bench.reward.sets import FOLDER, described, read_sets
from bench.reward.table import tables

SMOKE_TOKENS = 250


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(
        prog="python -m bench.reward", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="measure"))
    for name, does in (("table", "markdown for docs/reward-benchmark.md"), ("plot", "a picture beside the result")):
        shown = commands.add_parser(name, help=does)
        shown.add_argument("result", type=Path)
        if name == "plot":
            shown.add_argument("--out", type=Path, help="the picture; default: the result's name with .svg")
    sets = commands.add_parser("make-sets", help="freeze token ids")
    sets.add_argument("checkpoint", type=Path, help="whose tokenizer and template")
    sets.add_argument("pools", type=Path, nargs="+")
    sets.add_argument("--folder", type=Path, default=FOLDER)
    random = commands.add_parser("make-random", help="a checkpoint for speed only")
    random.add_argument("--shape", choices=sorted(SHAPES), required=True)
    random.add_argument("--tokenizer-of", type=Path, required=True, help="a checkpoint with the sets' tokenizer")
    random.add_argument("directory", type=Path)
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("checkpoint", type=Path, help="a directory with a one-label classifier")
    run.add_argument("--out", type=Path, required=True, help="the result, written after every step")
    run.add_argument("--legs", help="comma-separated; default: all that make sense on the device")
    run.add_argument("--sets", help="comma-separated; default: all")
    run.add_argument("--pool", type=Path, help="JSON Lines of candidates: one more set, `pool`, 25 problems x 8")
    run.add_argument("--repeats", type=int, default=5)
    run.add_argument("--tokens", type=int, default=2500, help="useful tokens taken of each set; 0: all")
    run.add_argument("--bits-tokens", type=int, default=2000, help="useful tokens that are regrouped; 0: all of S2")
    run.add_argument("--device", default="cpu")
    run.add_argument("--threads", type=int, default=machine.described()["cores"])
    run.add_argument("--infinity", type=Path, help="python of the environment that infinity_env.sh makes")
    run.add_argument("--tuned", type=Path, help="an earlier result whose chosen settings are taken")
    run.add_argument("--quiet", type=float, default=0.2, help="cores that others may use when a measurement begins")
    run.add_argument("--patience", type=float, default=60, help="seconds that waiting for that may take in all")
    run.add_argument("--limit", type=float, default=600, help="seconds that one start or call may take")
    run.add_argument("--smoke", action="store_true", help="one round on almost nothing, without tuning")


def measure(options: argparse.Namespace) -> None:
    """The `run` command."""
    setup = Setup(options.checkpoint.resolve(), options.device, options.threads, _absolute(options.infinity))
    known = legs(setup)
    names = options.legs.split(",") if options.legs else defaults(setup)
    if unknown := set(names) - known.keys():
        raise SystemExit(f"no such leg: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    sets = _chosen_sets(options)
    record = Record(options.out, _head(options, sets))
    with tempfile.TemporaryDirectory(prefix="bench-reward-") as logs:
        plan = Plan(
            legs=[known[name] for name in names],
            sets=sets,
            rounds=1 if options.smoke else options.repeats,
            bits_tokens=SMOKE_TOKENS if options.smoke else options.bits_tokens,
            quiet=options.quiet,
            patience=0 if options.smoke else options.patience,
            start=options.limit,
            logs=Path(logs),
            tuned=_tuned(options, known),
        )
        try:
            Runner(plan, record).run()
        except KeyboardInterrupt:
            raise SystemExit(f"interrupted; {options.out} has what was measured") from None
    say(f"written: {options.out}")


def _absolute(python: Path | None) -> Path | None:
    """Not resolved: an environment's python is a link."""
    return python.absolute() if python else None


def _chosen_sets(options: argparse.Namespace) -> dict[str, Any]:
    tokens = SMOKE_TOKENS if options.smoke else options.tokens
    sets = read_sets(FOLDER, options.sets.split(",") if options.sets else None, tokens)
    if options.pool:
        encoder = PromptEncoder.from_directory(options.checkpoint)
        sets["pool"] = beginning(pool_set(options.pool, encoder), tokens)
    return sets


def _tuned(options: argparse.Namespace, known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings chosen before; in a smoke run the first of each, so that nothing is tuned."""
    if options.tuned:
        tuning = json.loads(options.tuned.read_text())["tuning"]
        return {name: one["chosen"] for name, one in tuning.items() if "chosen" in one}
    if options.smoke:
        return {name: {key: values[0] for key, values in leg.choices.items()} for name, leg in known.items()}
    return {}


def _head(options: argparse.Namespace, sets: dict[str, Any]) -> dict[str, Any]:
    names = ("repeats", "tokens", "bits_tokens", "device", "threads", "smoke")
    return {
        "checkpoint": options.checkpoint.resolve().name,
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine.described(),
        "before": asdict(machine.wait_until_quiet(options.quiet, 0 if options.smoke else options.patience)),
        "arguments": {name: getattr(options, name) for name in names},
        "quiet": options.quiet,
        "sets": {name: described(groups) for name, groups in sets.items()},
    }


def main() -> None:
    """Read the arguments, do what they say."""
    options = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have started us with the interrupt ignored
        signal.signal(number, signal.default_int_handler)
    if options.command == "run":
        measure(options)
    elif options.command == "table":
        print(tables(*read_result(options.result)), end="")
    elif options.command == "plot":
        out = options.out or options.result.with_suffix(".svg")
        importlib.import_module("bench.reward.plot").draw(*read_result(options.result), out)
        say(f"written: {out}")
    elif options.command == "make-sets":
        made = make_sets(options.pools, PromptEncoder.from_directory(options.checkpoint), options.folder)
        print(json.dumps({name: described(groups) for name, groups in made.items()}, indent=2))
    else:
        make(options.shape, options.tokenizer_of, options.directory)


if __name__ == "__main__":
    main()
