"""`python -m bench.gateway`, from the checkout's root: what a gateway adds to an answer. See README.md.

python -m bench.gateway run --out bench/results/gateway-NAME.json --litellm DIR/bin/python --optillm DIR/bin/python
python -m bench.gateway table bench/results/gateway-NAME.json
python -m bench.gateway plot bench/results/gateway-NAME.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gateway.run import Plan, Runner, pin, say
from bench.gateway.servers import DOUBLES, PORTS, ROOT, Bench, legs, surroundings
from bench.gateway.table import tables
from bench.reward import machine

PORTS_FROM, PORTS_TO = 13_000, 31_000


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(
        prog="python -m bench.gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="measure"))
    for name, does in (("table", "markdown"), ("plot", "a picture beside the result")):
        shown = commands.add_parser(name, help=does)
        shown.add_argument("result", type=Path)
        if name == "plot":
            shown.add_argument("--out", type=Path, help="the picture; default: the result's name with .svg")
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    cores = sorted(os.sched_getaffinity(0))
    run.add_argument("--out", type=Path, required=True, help="the result, written after every step")
    run.add_argument("--litellm", type=Path, help="python of its environment")
    run.add_argument("--optillm", type=Path, help="python of its environment")
    run.add_argument("--legs", help="comma-separated; default: all that can be run")
    run.add_argument("--counts", default="1,8,64", help="candidates a request")
    run.add_argument("--rates", default="10,100,200,500", help="requests a second")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--seconds", type=float, default=10.0, help="of each load")
    run.add_argument("--patience", type=float, default=10.0, help="seconds that the last request may take")
    run.add_argument("--server-core", type=int, default=cores[-1])
    run.add_argument("--load-core", type=int, default=cores[0], help="of load, stand-in and Redis")
    run.add_argument("--quiet", type=float, default=0.2, help="cores that others may use when a load begins")
    run.add_argument("--quiet-patience", type=float, default=5.0, help="seconds that waiting for that may take")
    run.add_argument("--disturbed", type=float, default=1.05, help="cores beside the server's that are too many")


def measure(options: argparse.Namespace) -> None:
    """The `run` command."""
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        bench = _bench(options, Path(folder))
        known = legs(bench)
        chosen = options.legs.split(",") if options.legs else list(known)
        if unknown := set(chosen) - known.keys():
            raise SystemExit(f"no such leg here: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        plan = Plan(
            legs=[known[name] for name in chosen],
            counts=[int(n) for n in options.counts.split(",")],
            rates=[float(rate) for rate in options.rates.split(",")],
            rounds=options.rounds,
            seconds=options.seconds,
            patience=options.patience,
            quiet=options.quiet,
            quiet_patience=options.quiet_patience,
        )
        document = _head(options, {name: known[name].does for name in chosen})
        pin(options.load_core)
        try:
            with surroundings(bench):
                Runner(plan, bench, document, options.out).run()
        except KeyboardInterrupt:
            raise SystemExit(f"interrupted; {options.out} has the rounds that were finished") from None
    say(f"written: {options.out}")


def _bench(options: argparse.Namespace, folder: Path) -> Bench:
    made = subprocess.run(
        [sys.executable, str(DOUBLES / "small_release.py"), str(folder / "registry")],
        check=True,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    return Bench(
        folder=folder,
        first_port=_free_run(),
        release=json.loads(made.stdout),
        server_core=options.server_core,
        load_core=options.load_core,
        litellm=options.litellm.absolute() if options.litellm else None,  # not resolved: it is a link
        optillm=options.optillm.absolute() if options.optillm else None,
    )


def _free_run() -> int:
    """The first of `PORTS` consecutive ports that nobody listens on."""
    for first in range(PORTS_FROM + os.getpid() % 500 * PORTS, PORTS_TO, PORTS):
        sockets = [socket.socket() for _ in range(PORTS)]
        try:
            for place, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + place))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise SystemExit(f"no {PORTS} free ports in a row between {PORTS_FROM} and {PORTS_TO}")


def _head(options: argparse.Namespace, does: dict[str, str]) -> dict[str, Any]:
    names = ("counts", "rates", "rounds", "seconds", "patience", "server_core", "load_core", "disturbed")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit.stdout.strip() or "unknown",
        "machine": machine.described(),
        "arguments": {name: getattr(options, name) for name in names},
        "versions": {name: _version(getattr(options, name), name) for name in ("litellm", "optillm")},
        "does": does,
    }


def _version(python: Path | None, package: str) -> str | None:
    if python is None:
        return None
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Read the arguments, do what they say."""
    options = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have started us with the interrupt ignored
        signal.signal(number, signal.default_int_handler)
    if options.command == "run":
        measure(options)
        return
    document = json.loads(options.result.read_text())
    if options.command == "table":
        print(tables(document), end="")
    else:
        out = options.out or options.result.with_suffix(".svg")
        importlib.import_module("bench.gateway.plot").draw(document, out)
        say(f"written: {out}")


if __name__ == "__main__":
    main()
