"""What a result says: rates, paired ratios with their spread, shares of the peak, distances, bits."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.reward.record import ScoreBook
from bench.reward.stats import differences, paired_ratios, spread

REFERENCES = ("hf-fp32", "hf-bf16")

Seconds = dict[str, dict[str, dict[int, float]]]
"""Label -> set -> round -> seconds."""


def summarised(document: Mapping[str, Any], scores: ScoreBook) -> dict[str, Any]:
    """Everything that the tables and the plot show."""
    seconds = by_round(document)
    peak = peak_rate(document)
    return {
        "peak_tokens_per_second": peak,
        "rates": {label: _rates(document, label, of_sets, peak) for label, of_sets in seconds.items()},
        "ratios": _ratios(document, seconds),
        "off": _off(document, seconds),
        "distances": _distances(scores),
        "same_as_ours": _same_as_ours(document, scores),
        "http_overhead_ms": _http_overhead(document, seconds),
        "busy": _busy(document),
    }


def by_round(document: Mapping[str, Any]) -> Seconds:
    """The timed calls."""
    found: Seconds = {}
    for leg in document["legs"].values():
        for label, of_sets in leg["runs"].items():
            found[label] = {name: {row["round"]: row["seconds"] for row in rows} for name, rows in of_sets.items()}
    return found


def peak_rate(document: Mapping[str, Any]) -> float | None:
    """The better of the team's and the workers' median rate of matrix products."""
    medians = [statistics.median(rates) for rates in document["peak"].values()]
    return max(medians) if medians else None


def labels_of(document: Mapping[str, Any], kind: str, *, plain: bool = False) -> list[str]:
    """Labels of a kind's runs; with `plain` only those of the legs themselves."""
    legs = {name: leg for name, leg in document["legs"].items() if leg["kind"] == kind}
    return [label for name, leg in legs.items() for label in leg["runs"] if not plain or label == name]


def _rates(
    document: Mapping[str, Any], label: str, of_sets: Mapping[str, Mapping[int, float]], peak: float | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, rounds in of_sets.items():
        sizes = document["sets"][name]
        useful = spread([sizes["useful_tokens"] / s for s in rounds.values()], 1)
        found[name] = {
            "useful_tokens_per_second": useful,
            "with_duplicates": spread([sizes["useful_tokens_with_duplicates"] / s for s in rounds.values()], 1),
            "candidates_per_second": spread([sizes["candidates"] / s for s in rounds.values()], 2),
            "share_of_peak": round(useful["median"] / peak, 3) if peak else None,
        }
    return found


def _ratios(document: Mapping[str, Any], seconds: Seconds) -> dict[str, Any]:
    """Ours -> peer -> set -> spread of peer's seconds / ours, round by round."""
    peers = labels_of(document, "peer")
    return {
        mine: {
            peer: {
                name: paired_ratios(seconds[peer][name], seconds[mine][name]) for name in _common(seconds, peer, mine)
            }
            for peer in peers
        }
        for mine in labels_of(document, "ours")
    }


def _off(document: Mapping[str, Any], seconds: Seconds) -> dict[str, Any]:
    """Technique -> set -> spread of its seconds / those of all on."""
    labels = labels_of(document, "off")
    base = next((label for label in labels if label.endswith(": all on")), None)
    if base is None:
        return {}
    others = [label for label in labels if label != base]
    return {
        label.partition(": ")[2]: {
            name: paired_ratios(seconds[label][name], seconds[base][name]) for name in _common(seconds, label, base)
        }
        for label in others
    }


def _common(seconds: Seconds, a: str, b: str) -> list[str]:
    return [name for name in seconds[a] if name in seconds[b]]


def _distances(scores: ScoreBook) -> dict[str, Any]:
    """Label -> reference -> how far, over all sets that both were measured on."""
    found: dict[str, Any] = {}
    for label, of_sets in scores.items():
        for reference in REFERENCES:
            names = [name for name in of_sets if name in scores.get(reference, {})]
            if names:
                mine = [row for name in names for row in of_sets[name]]
                theirs = [row for name in names for row in scores[reference][name]]
                found.setdefault(label, {})[reference] = differences(mine, theirs)
    return found


def _same_as_ours(document: Mapping[str, Any], scores: ScoreBook) -> dict[str, Any]:
    """Scores of our other legs, and with techniques off, that have other bits than the one in process."""
    found: dict[str, Any] = {}
    base = scores.get("ours", {})
    for label in labels_of(document, "ours") + labels_of(document, "off"):
        pairs = [
            (x, y)
            for name, rows in scores.get(label, {}).items()
            for a, b in zip(rows, base.get(name, rows), strict=True)
            for x, y in zip(a, b, strict=True)
        ]
        if label != "ours" and base:
            found[label] = {"scores": len(pairs), "changed": sum(x != y for x, y in pairs)}
    return found


def _http_overhead(document: Mapping[str, Any], seconds: Seconds) -> dict[str, Any]:
    """Milliseconds a candidate: the median over rounds of (HTTP - in process) / candidates."""
    found: dict[str, Any] = {}
    for face, inner in (("ours-http-one", "ours-one"), ("ours-http", "ours"), ("ours-http-workers", "ours-workers")):
        if face in seconds and inner in seconds:
            for name in _common(seconds, face, inner):
                rounds = seconds[face][name].keys() & seconds[inner][name].keys()
                each = [(seconds[face][name][r] - seconds[inner][name][r]) * 1000 for r in sorted(rounds)]
                count = document["sets"][name]["candidates"]
                found.setdefault(face, {})[name] = spread([value / count for value in each], 3)
    return found


def _busy(document: Mapping[str, Any]) -> dict[str, Any]:
    """How many calls were measured while others used more of the machine than the plan allows, and the worst."""
    limit = document["quiet"]
    rows = [
        (label, name, row)
        for leg in document["legs"].values()
        for label, of_sets in leg["runs"].items()
        for name, found in of_sets.items()
        for row in found
    ]
    flagged = [one for one in rows if one[2]["before"]["busy_cores"] > limit or one[2]["foreign_cores"] > limit]
    worst = max((row["foreign_cores"] for _, _, row in rows), default=0.0)
    return {"calls": len(rows), "flagged": len(flagged), "most_foreign_cores": worst}
