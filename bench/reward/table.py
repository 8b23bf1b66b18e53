"""The markdown tables of docs/reward-benchmark.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.reward.record import ScoreBook
from bench.reward.summary import labels_of, summarised


def tables(document: Mapping[str, Any], scores: ScoreBook) -> str:
    """All of them."""
    found = summarised(document, scores)
    names = list(document["sets"])
    parts = [
        _head(document, found),
        _sets(document),
        _rates(document, found, names),
        _ratios(document, found, names),
        _off(found),
        _distances(document, found),
        _bits(document, found),
        _costs(document),
        _notes(document, found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; nothing without rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _head(document: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    machine, arguments = document["machine"], document["arguments"]
    peak = found["peak_tokens_per_second"]
    limit = f" Peak of the matrix products: {peak:.0f} tokens/s." if peak else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags']) or 'no bfloat16 flags'}), "
        f"{arguments['threads']} threads, {arguments['device']}, checkpoint `{document['checkpoint']}`, "
        f"{arguments['repeats']} rounds, {document['at']}.{limit}"
    )


def _sets(document: Mapping[str, Any]) -> str:
    keys = ("problems", "candidates", "distinct", "useful_tokens", "tokens_prompt_repeated")
    more = ("prompt_tokens_mean", "candidate_tokens_mean", "candidate_tokens_max_over_mean")
    head = ["set", "problems", "candidates", "distinct", "useful tokens", "tokens, prompt repeated", "mean prompt"]
    rows = [[name, *(str(sizes[key]) for key in keys + more)] for name, sizes in document["sets"].items()]
    return markdown([*head, "mean candidate", "longest / mean"], rows)


def _rates(document: Mapping[str, Any], found: Mapping[str, Any], names: Sequence[str]) -> str:
    """Useful tokens a second, and the share of the peak."""
    rows = []
    for label in labels_of(document, "peer") + labels_of(document, "ours"):
        rates = found["rates"][label]
        rows.append([label, *(_rate(rates.get(name)) for name in names)])
    rows += [[n, f"failed: {leg['error']}"] for n, leg in document["legs"].items() if "error" in leg]
    return markdown(["useful tokens/s, median (min-max), % of peak", *names], rows)


def _rate(one: Mapping[str, Any] | None) -> str:
    if one is None or not one["useful_tokens_per_second"]:
        return "-"
    rate, share = one["useful_tokens_per_second"], one["share_of_peak"]
    percent = f", {share:.0%}" if share is not None else ""
    return f"{rate['median']:.0f} ({rate['min']:.0f}-{rate['max']:.0f}){percent}"


def _ratios(document: Mapping[str, Any], found: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = []
    for mine in labels_of(document, "ours"):
        for peer, of_sets in found["ratios"][mine].items():
            rows.append([mine, peer, *(_spread(of_sets.get(name)) for name in names)])
    return markdown(["ours", "how many times as fast as", *names], rows)


def _spread(one: Mapping[str, Any] | None, digits: int = 2) -> str:
    if not one:
        return "-"
    return f"{one['median']:.{digits}f} ({one['min']:.{digits}f}-{one['max']:.{digits}f})"


def _off(found: Mapping[str, Any]) -> str:
    names = sorted({name for of_sets in found["off"].values() for name in of_sets})
    same = {label.partition(": ")[2]: one for label, one in found["same_as_ours"].items()}
    rows = [
        [what, *(_spread(of_sets.get(name)) for name in names), _changed(same.get(what))]
        for what, of_sets in found["off"].items()
    ]
    return markdown(["one thing different: times as slow as all on", *names, "scores with other bits"], rows)


def _distances(document: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    rows = []
    for label in labels_of(document, "peer") + labels_of(document, "ours"):
        of_references = found["distances"].get(label, {})
        cells = []
        for reference in ("hf-fp32", "hf-bf16"):
            one = of_references.get(reference)
            cells += _distance(one) if one and label != reference else ["-", "-", "-"]
        rows.append([label, *cells])
    head = [
        f"{what} {dtype}" for dtype in ("float32", "bfloat16") for what in ("largest (mean) to", "best of", "tau to")
    ]
    return markdown(["scores", *head], rows)


def _distance(one: Mapping[str, Any]) -> list[str]:
    tau = "-" if one["kendall_tau"] is None else f"{one['kendall_tau']:.3f}"
    far = f"{one['largest_difference']:.6f} ({one['mean_difference']:.6f})"
    return [far, f"{one['same_best']} / {one['problems']}", tau]


def _bits(document: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Scores whose bits changed when the same candidates were handed over differently."""
    rows = {name: leg["bits"] for name, leg in document["legs"].items() if "bits" in leg}
    ways = list(dict.fromkeys(way for row in rows.values() for way in row if way != "scores"))
    same = found["same_as_ours"]
    cells = [[name, *(_changed(row.get(way)) for way in ways), _changed(same.get(name))] for name, row in rows.items()]
    return markdown(["scores with other bits, of all", *ways, "as `ours`, all sets"], cells)


def _changed(one: Mapping[str, int] | None) -> str:
    return "-" if one is None else f"{one['changed']} / {one['scores']}"


def _costs(document: Mapping[str, Any]) -> str:
    rows = []
    for name, leg in document["legs"].items():
        if "start_seconds" in leg:
            rows.append(
                [name, f"{leg['start_seconds']:.1f}", str(leg.get("peak_rss_mib", "-")), _cpu(document, leg, name)]
            )
    return markdown(["system", "start, s", "peak memory, MiB", "CPU ms a candidate, all sets"], rows)


def _cpu(document: Mapping[str, Any], leg: Mapping[str, Any], label: str) -> str:
    of_sets = leg["runs"].get(label, {})
    seconds = sum(row["cpu_seconds"] for rows in of_sets.values() for row in rows)
    count = sum(document["sets"][name]["candidates"] * len(rows) for name, rows in of_sets.items())
    return f"{seconds / count * 1000:.1f}" if count else "-"


def _notes(document: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    lines = []
    for face, of_sets in found["http_overhead_ms"].items():
        each = ", ".join(f"{name} {_spread(one, 3)}" for name, one in of_sets.items())
        lines.append(f"`{face}` over the same in process, ms a candidate: {each}.")
    busy = found["busy"]
    lines.append(
        f"{busy['flagged']} of {busy['calls']} calls were measured while others used more than "
        f"{document['quiet']} cores (at most {busy['most_foreign_cores']})."
    )
    lines += [f"{leg}: chosen {one['chosen']}." for leg, one in document["tuning"].items() if "chosen" in one]
    return "\n\n".join(lines)
