"""Does scoring candidates while they are written pay? Time from the last token of the last candidate to the answer.

    python bench/gateway_live.py --start [--out bench/results/gateway_live.json]     beside a running `make run`
    python bench/gateway_live.py --off http://127.0.0.1:8081 --on http://127.0.0.1:8082

The setting cannot be changed while a gateway runs, so there are two gateways on one policy and one reward service, one
with `ACEMATH_GATEWAY__LIVE_SCORING=true`. With --start this starts both, on free ports, with the local state of `make
run` (other addresses: the gateway's own settings in the environment), and stops them at the end.

Each problem is solved by both, one right after the other with the same seed, the order turning from one to the next.
`tail` is `total_seconds - queue_seconds - last_candidate_seconds` of the answer's timings; `total` is the whole answer,
which live scoring may make later on a machine where both services share the cores. A ratio is off / on of one pair, so
above 1 is live's win. Pairs in which either answer is degraded or has an unscored candidate are counted and left out.
Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120
WAYS = ("off", "on")


@dataclass(frozen=True)
class Solved:
    """One answer: seconds, and what it says of itself."""

    tail: float
    score_tail: float
    total: float
    whole: bool
    solution: str
    tokens: int


def made_problem(draw: random.Random) -> str:
    """A word problem."""
    boxes, each, away = draw.randint(3, 12), draw.randint(3, 12), draw.randint(1, 8)
    return f"A shop has {boxes} boxes with {each} pens in each and sells {away} pens. How many pens are left?"


def solve(client: httpx.Client, url: str, problem: str, n: int, seed: int, max_tokens: int) -> Solved:
    """One problem at one gateway; raises `httpx.HTTPStatusError` when it gives no answer."""
    body = {"problem": problem, "n": n, "seed": seed, "max_tokens": max_tokens, "deadline_seconds": 600}
    response = client.post(f"{url}/v1/solve", json=body)
    response.raise_for_status()
    answer = response.json()
    timings = answer["timings"]
    last = timings["last_candidate_seconds"]
    return Solved(
        tail=timings["total_seconds"] - timings["queue_seconds"] - last,
        score_tail=(timings["last_score_seconds"] or last) - last,
        total=timings["total_seconds"],
        whole=not answer["degraded"] and answer["n_scored"] == answer["n_requested"] == n,
        solution=answer["solution"],
        tokens=answer["usage"]["completion_tokens"],
    )


def pairs(
    client: httpx.Client, urls: dict[str, str], n: int, count: int, max_tokens: int
) -> Iterator[dict[str, Solved]]:
    """The same problems at both gateways, the first one (a warm-up) not given."""
    draw = random.Random(n)
    for number in range(count + 1):
        problem, seed = made_problem(draw), draw.randrange(2**31)
        order = WAYS if number % 2 else WAYS[::-1]
        pair = {way: solve(client, urls[way], problem, n, seed, max_tokens) for way in order}
        if number:
            print(f"n={n} {number}/{count}: tail " + ", ".join(f"{w} {pair[w].tail:.3f} s" for w in WAYS), flush=True)
            yield pair


def summary(found: Sequence[dict[str, Solved]]) -> dict[str, Any]:
    """Medians with quartiles of both, and of the ratios of each pair."""
    good = [pair for pair in found if all(one.whole for one in pair.values())]
    result: dict[str, Any] = {
        "pairs": len(good),
        "left_out": len(found) - len(good),
        "same_answer": sum(pair["off"].solution == pair["on"].solution for pair in good),
        "same_tokens": sum(pair["off"].tokens == pair["on"].tokens for pair in good),
    }
    for what in ("tail", "score_tail", "total"):
        values = {way: [getattr(pair[way], what) for pair in good] for way in WAYS}
        ratios = [off / on for off, on in zip(values["off"], values["on"], strict=True) if on > 0]
        result[what] = {way: spread(values[way]) for way in WAYS} | {"off_over_on": spread(ratios)}
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    if not values:
        return {}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    named = {"median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def table(results: dict[int, dict[str, Any]]) -> str:
    """For people, and for a page in docs/."""
    lines = ["| N | what | off, s | on, s | off / on (quartiles) | pairs |", "|---|---|---|---|---|---|"]
    for n, result in results.items():
        for what, name in (("tail", "last token to answer"), ("total", "whole answer")):
            off, on, ratio = (result[what][key] for key in ("off", "on", "off_over_on"))
            if ratio:
                quartiles = f"{ratio['median']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})"
                lines.append(
                    f"| {n} | {name} | {off['median']:.3f} | {on['median']:.3f} | {quartiles} | {result['pairs']} |"
                )
    return "\n".join(lines)


@contextlib.contextmanager
def two_gateways() -> Iterator[dict[str, str]]:
    """Start both on free ports; they end with the block, whatever ends it."""
    with contextlib.ExitStack() as stack:
        urls = {way: stack.enter_context(gateway(live=way == "on")) for way in WAYS}
        for url in urls.values():
            wait_until_ready(url)
        yield urls


@contextlib.contextmanager
def gateway(*, live: bool) -> Iterator[str]:
    """One gateway process; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    state = ROOT / ".local"
    values = {"REGISTRY_ROOT": str(state / "registry"), "INTERNAL_KEY_FILE": str(state / "keys" / "internal.key")}
    own = {"PORT": str(port), "INSTANCE": f"bench-live-{'on' if live else 'off'}", "LIVE_SCORING": str(live).lower()}
    named = {f"ACEMATH_GATEWAY__{name}": value for name, value in values.items()} | os.environ
    named |= {f"ACEMATH_GATEWAY__{name}": value for name, value in own.items()}
    process = subprocess.Popen([sys.executable, "-m", "acemath_gateway"], env=named, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=90)


def wait_until_ready(url: str) -> None:
    """Return when the gateway is ready; RuntimeError when it is not in time."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        time.sleep(0.25)
    raise RuntimeError(f"the gateway at {url} is not ready after {START_SECONDS} s; is `make run` running?")


def live_counts(url: str, key: str | None) -> dict[str, float]:
    """The gateway's fallbacks and calls so far; nothing where its metrics are not to be had."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = httpx.get(f"{url}/metrics", headers=headers, trust_env=False)
    names = ("acemath_gateway_live_fallbacks_total", 'acemath_gateway_upstream_calls_total{result="')
    lines = [line for line in response.text.splitlines() if response.is_success and line.startswith(names)]
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if 'role="policy"' not in line}
    return {name: count for name, count in counts.items() if count}


def cpu_model() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def measure(urls: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to the file."""
    key = options.key_file.read_text().strip() if options.key_file and options.key_file.exists() else None
    results: dict[int, dict[str, Any]] = {}
    raw: dict[int, list[dict[str, Any]]] = {}
    with httpx.Client(timeout=660, trust_env=False) as client:
        for n in options.n:
            found = list(pairs(client, urls, n, options.pairs, options.max_tokens))
            results[n] = summary(found)
            raw[n] = [{way: asdict(one) for way, one in pair.items()} for pair in found]
    print(table(results))
    return {
        "results": results,
        "counts_on": live_counts(urls["on"], key),
        "max_tokens": options.max_tokens,
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "raw": raw,
    }


def main() -> None:
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", action="store_true", help="start the two gateways")
    parser.add_argument("--off", help="base URL of a gateway without live scoring")
    parser.add_argument("--on", help="base URL of a gateway with live scoring")
    parser.add_argument("--n", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--key-file", type=Path, default=ROOT / ".local" / "keys" / "internal.key")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.start == bool(options.off and options.on):
        parser.error("give either --start or both of --off and --on")
    given = contextlib.nullcontext({"off": options.off, "on": options.on})
    with two_gateways() if options.start else given as urls:
        report = json.dumps(measure(urls, options), indent=2)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
