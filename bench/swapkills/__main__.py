"""kill -9 of every part at every state of a swap: where does the system end up, and in how long?

    python -m bench.swapkills run http://127.0.0.1:8080 --state .local --minutes 40 --out FILE.json
    python -m bench.swapkills table FILE.json [--into docs/swap-kills.md]

Beside a running stack (`make run`, with its state folder) that nobody else uses. Each cell promotes a release of two
new versions that show in every answer who wrote it and who scored it, while a few clients ask all the time; when the
state is there, the victim gets a SIGKILL. The file is whole after every cell, and the same command again goes on with
the cells that are not in it. At the end the channel points where it did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from acemath_registry import Registry
from bench.kills.__main__ import Stack
from bench.reward import machine
from bench.swapkills.asking import Clients
from bench.swapkills.matrix import CELLS, Cell
from bench.swapkills.results import Hit, Results, Row, broken
from bench.swapkills.runner import Bench
from bench.swapkills.stack import Processes
from bench.swapkills.swap import NotSettled
from bench.swapkills.table import put, render
from bench.swapkills.view import CHANNEL, Looker, Pair
from bench.swaps.publisher import Publisher


async def cells(bench: Bench, wanted: list[Cell], results: Results, minutes: float) -> list[str]:
    """Run those that are not in the results, and begin none after so many minutes; the promises that were broken."""
    until, wrong = time.monotonic() + minutes * 60, list[str]()
    for cell in wanted:
        if results.done(cell):
            continue
        if time.monotonic() > until:
            break
        row = await bench.cell(cell)
        results.keep(cell, row)
        wrong += [f"{cell}: {what}" for what in broken(row)]
        print(_said(cell, row), flush=True)
    return wrong


def _said(cell: Cell, row: Row) -> str:
    if row["hit"] == Hit.MISSED:
        return f"{cell}: missed {row['attempts']} times"
    first, new = row["seconds_until_answered"], row["seconds_until_new_release"]
    return (
        f"{cell}: {row['end']}; all answered after {first} s, by the new release after {new} s; {broken(row) or 'kept'}"
    )


async def run(options: argparse.Namespace) -> list[str]:
    """Put a release of our own in, run the cells, put the channel back."""
    state: Path = options.state.absolute()
    registry, pid = Registry(state / "registry"), int((state / "run" / "supervisord.pid").read_text())
    publisher, before = Publisher(registry, options.max_tokens), registry.channel(CHANNEL)
    results = Results(options.out, {"clients": options.clients, "n": options.n, "machine": machine.described()})
    key = {"authorization": f"Bearer {(state / 'keys' / 'internal.key').read_text().strip()}"}
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=options.url, limits=limits) as gateway,
        httpx.AsyncClient(headers=key) as services,
    ):
        looker = Looker(registry, gateway, services, options.policy_url, options.reward_url)
        processes = Processes(psutil.Process(pid), Stack(pid, gateway))
        first = await asyncio.to_thread(publisher.make)
        clients = Clients(gateway, {first.id: first}, options.n, options.max_tokens)
        current = Pair(first.policy, first.reward, first.id)
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(
                registry, looker, processes, clients, publisher.prepare, current, options.patience, Path(scratch),
                options.clients,
            )  # fmt: skip
            registry.promote(CHANNEL, first.id, expected_generation=before.generation, by="bench.swapkills")
            wrong = list[str]()
            try:
                wrong += await cells(bench, options.cells, results, options.minutes)
            except* NotSettled as unsettled:
                wrong += [f"the run ended: {error}" for error in unsettled.exceptions]
            finally:
                registry.promote(CHANNEL, before.release, expected_generation=None, by="bench.swapkills")
            return wrong


def _show(text: str, into: Path | None) -> None:
    if into is None:
        sys.stdout.write(text + "\n")
    else:
        into.write_text(put(text, into.read_text()))


def _wanted(text: str) -> list[Cell]:
    named = {str(cell): cell for cell in CELLS}
    return [named[name.strip()] for name in text.split(",")]


def main() -> None:
    """Read the arguments; status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tables = commands.add_parser("table", help="render the results")
    tables.add_argument("results", type=Path)
    tables.add_argument("--into", type=Path, help="a document with the table's mark, e.g. docs/swap-kills.md")
    runs = commands.add_parser("run", help="run the cells, the most valuable first")
    runs.add_argument("url", help="of the gateway")
    runs.add_argument("--state", type=Path, required=True, help="the stack's state folder, .local in its checkout")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--minutes", type=float, default=60.0, help="no cell begins after so many")
    runs.add_argument("--policy-url", default="http://127.0.0.1:8100")
    runs.add_argument("--reward-url", default="http://127.0.0.1:8200")
    runs.add_argument("--cells", type=_wanted, default=list(CELLS), help='e.g. "gateway @ draining, Redis @ one ready"')
    runs.add_argument("--clients", type=int, default=3)
    runs.add_argument("--n", type=int, default=2)
    runs.add_argument("--max-tokens", type=int, default=16)
    runs.add_argument("--patience", type=float, default=240.0, help="seconds that a swap may take")
    options = parser.parse_args()
    if options.command == "table":
        _show(render(json.loads(options.results.read_text())), options.into)
        return
    wrong = asyncio.run(run(options))
    print("\n".join(wrong) or "every promise was kept")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
