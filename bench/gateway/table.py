"""The result as markdown: what a server adds to the stand-in's own time, and how many times as much others add."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.reward.stats import spread

OURS, BASE = "acemath", "direct"
Document = Mapping[str, Any]


def names(document: Document) -> list[str]:
    """The systems that were measured, the stand-in first."""
    return list(dict.fromkeys(cell["leg"] for cell in document["cells"]))


def cells(document: Document, leg: str, n: int, rate: float) -> dict[int, Mapping[str, Any]]:
    """One load's results by round."""
    wanted = (leg, n, rate)
    return {c["round"]: c for c in document["cells"] if (c["leg"], c["n"], c["rate"]) == wanted}


def added(document: Document, leg: str, n: int, rate: float, what: str) -> dict[int, float]:
    """Milliseconds that a server adds to the stand-in's median, by round; not of rounds that it did not answer."""
    base = cells(document, BASE, n, rate)
    mine = cells(document, leg, n, rate)
    return {
        turn: cell[what] - base[turn]["p50"]
        for turn, cell in mine.items()
        if turn in base and cell[what] is not None and base[turn]["p50"] is not None
    }


def ratios(document: Document, leg: str, n: int, rate: float, what: str) -> dict[str, float]:
    """How many times as much as ours a server adds, over the rounds that both answered."""
    ours, theirs = (added(document, one, n, rate, what) for one in (OURS, leg))
    return spread([theirs[turn] / ours[turn] for turn in sorted(ours.keys() & theirs.keys()) if ours[turn] > 0], 1)


def tables(document: Document) -> str:
    """Everything, for README.md."""
    parts = [
        _head(document),
        _latencies(document),
        _ratios(document),
        _cpu(document),
        _notes(document),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(document: Document) -> str:
    machine, given = document["machine"], document["arguments"]
    where = f"server on core {given['server_core']}, load, stand-in and Redis on core {given['load_core']}"
    how = f"{given['rounds']} rounds of {given['seconds']:g} s, {document['at']}, commit {document['commit']}"
    return f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {where}; {how}."


def _loads(document: Document) -> list[tuple[int, float]]:
    return list(dict.fromkeys((cell["n"], cell["rate"]) for cell in document["cells"]))


def _latencies(document: Document) -> str:
    loads = _loads(document)

    def shown(leg: str, n: int, rate: float) -> str:
        found = cells(document, leg, n, rate)
        if not found:
            return "-"
        if leg == BASE:
            return f"{_median(found, 'p50')} / {_median(found, 'p99')}"
        if any(cell["p99"] is None for cell in found.values()):
            share = sum(c["answered"] for c in found.values()) / sum(c["sent"] for c in found.values())
            return f"flooded: {share:.0%} answered"
        return " / ".join(_spread(list(added(document, leg, n, rate, what).values())) for what in ("p50", "p99"))

    head = [f"n={n}, {rate:g}/s" for n, rate in loads]
    return _grid(document, "ms added to the stand-in's median: median / p99 (range of rounds)", head, loads, shown)


def _ratios(document: Document) -> str:
    if OURS not in names(document):
        return ""
    others = [name for name in names(document) if name not in (OURS, BASE)]

    def shown(leg: str, n: int, rate: float) -> str:
        found = [ratios(document, leg, n, rate, what) for what in ("p50", "p99")]
        return " / ".join(f"{one['median']:g} ({one['min']:g}-{one['max']:g})" if one else "-" for one in found)

    head = [f"n={n}, {rate:g}/s" for n, rate in _loads(document)]
    title = "times as much as ours: median / p99 (range of rounds)"
    return _grid(document, title, head, _loads(document), shown, others) if others else ""


def _cpu(document: Document) -> str:
    def shown(leg: str, n: int, rate: float) -> str:
        found = [c for c in cells(document, leg, n, rate).values() if c["answered"] and c["server_cpu_seconds"]]
        each = [1000 * c["server_cpu_seconds"] / c["answered"] for c in found]
        return _spread(each) if each else "-"

    servers = [name for name in names(document) if name != BASE]
    head = [f"n={n}, {rate:g}/s" for n, rate in _loads(document)]
    return _grid(document, "the server's CPU ms an answer", head, _loads(document), shown, servers)


def _grid(
    document: Document,
    title: str,
    head: Sequence[str],
    loads: Sequence[tuple[int, float]],
    shown: Callable[[str, int, float], str],
    legs: Sequence[str] | None = None,
) -> str:
    """Loads down, systems across."""
    across = list(legs if legs is not None else names(document))
    rows = [[title, *across], ["---"] * (1 + len(across))]
    rows += [[name, *(shown(leg, n, rate) for leg in across)] for name, (n, rate) in zip(head, loads, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _notes(document: Document) -> str:
    lines = [f"{name}: {does}." for name, does in document["does"].items()]
    lines += [f"{name} failed: {why}" for name, why in document["failed"].items()]
    disturbed = sum(cell["other_cores"] > document["arguments"]["disturbed"] for cell in document["cells"])
    lines.append(
        f"{disturbed} of {len(document['cells'])} loads ran while other than the server used more than "
        f"{document['arguments']['disturbed']:g} cores."
    )
    return "\n\n".join(lines)


def _median(found: Mapping[int, Mapping[str, Any]], what: str) -> str:
    known = spread([cell[what] for cell in found.values() if cell[what] is not None], 2)
    return f"{known['median']:.2f}" if known else "-"


def _spread(values: Sequence[float]) -> str:
    known = spread(values, 2)
    return f"{known['median']:.2f} ({known['min']:.2f}-{known['max']:.2f})" if known else "-"
