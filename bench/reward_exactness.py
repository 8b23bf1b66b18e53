"""How near are the reward engine's scores to transformers', and are they free of their batch?

    python -m bench.reward_exactness CHECKPOINT [--candidates FILE.jsonl[.gz]] [--problems 12] [--per-problem 6]
        [--service URL --key-file FILE] [--out FILE.json]

With --service a running reward service with the same checkpoint is asked as well, by texts over POST /v1/score.
CHECKPOINT is a directory with a one-label classifier, e.g. .local/registry/models/acemath-embedded-reward/<version>.
FILE has one object a line, {"problem": text, "candidates": [{"text": text}, …]}; without it word problems with right
and wrong solutions are made from a seed. Prints one JSON object; both engines score the same token ids.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForSequenceClassification

from acemath_core.prompts import reward_context, reward_messages
from acemath_prompts import PromptEncoder
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine
from acemath_reward.ports import PromptGroup

Problem = tuple[str, list[str]]
Scores = list[list[float]]


def made_problems(count: int, per_problem: int) -> list[Problem]:
    """Word problems with one right and several wrong solutions, the same for everybody."""
    draw = random.Random(7)
    return [_made(draw, per_problem) for _ in range(count)]


def _made(draw: random.Random, per_problem: int) -> Problem:
    boxes, each, away = draw.randint(3, 12), draw.randint(3, 12), draw.randint(1, 8)
    problem = f"A shop has {boxes} boxes with {each} pens in each and sells {away} pens. How many pens are left?"
    solutions = []
    for wrong in (0, 1, -2, 10, 3, -7, 5, 100)[:per_problem]:
        total = boxes * each + wrong
        solutions.append(
            f"There are {boxes} * {each} = {total} pens.\n{total} - {away} = {total - away} pens are left.\n"
            f"The final answer is \\boxed{{{total - away}}}."
        )
    return problem, solutions


def read_problems(path: Path, count: int, per_problem: int) -> list[Problem]:
    """The first problems of a file that have enough candidates."""
    open_file = gzip.open if path.suffix == ".gz" else open
    problems: list[Problem] = []
    with open_file(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            texts = [candidate["text"] for candidate in row["candidates"]][:per_problem]
            if len(texts) == per_problem:
                problems.append((row["problem"], texts))
            if len(problems) == count:
                break
    return problems


def encode(encoder: PromptEncoder, problem: Problem) -> PromptGroup:
    """The token ids that both engines score."""
    text, solutions = problem
    prompt = encoder.encode_prompt(reward_context([{"role": "user", "content": text}]))
    whole = [encoder.encode_conversation(reward_messages(text, solution)) for solution in solutions]
    assert all(ids[: len(prompt)] == prompt for ids in whole)
    return PromptGroup(tuple(prompt), tuple(tuple(ids[len(prompt) :]) for ids in whole))


def theirs(checkpoint: Path, dtype: torch.dtype, groups: Sequence[PromptGroup]) -> Scores:
    """Scores by transformers, one sequence at a time, so that nothing is padded."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=dtype).eval()
    with torch.inference_mode():
        return [
            [model(torch.tensor([group.prompt + own])).logits.item() for own in group.candidates] for group in groups
        ]


def ours(checkpoint: Path, dtype: str, groups: Sequence[PromptGroup], threads: int) -> tuple[Scores, dict[str, bool]]:
    """Scores by our engine, and whether they have the same bits in other batches."""
    engine = load_engine(checkpoint, place("cpu", dtype, threads=threads))  # type: ignore[arg-type]
    by_problem = [engine.score([group])[0] for group in groups]
    alone = [[engine.score([PromptGroup(g.prompt, (own,))])[0][0] for own in g.candidates] for g in groups[:4]]
    backwards = [PromptGroup(g.prompt, g.candidates[::-1]) for g in groups[::-1]]
    turned = [row[::-1] for batch in _chunks(backwards, 3) for row in engine.score(batch)][::-1]
    return by_problem, {"same_bits_alone": alone == by_problem[:4], "same_bits_in_other_batches": turned == by_problem}


def of_service(url: str, key_file: Path | None, version: str, problems: Sequence[Problem]) -> Scores:
    """Scores by the service, a call for each problem.

    Raises:
        SystemExit: it serves another version.
    """
    headers = {"authorization": f"Bearer {key_file.read_text().strip()}"} if key_file else {}
    scores: Scores = []
    with httpx.Client(base_url=url, headers=headers, timeout=600, trust_env=False) as client:
        for text, solutions in problems:
            answer = client.post("/v1/score", json={"problem": text, "candidates": solutions}).raise_for_status().json()
            if not answer["model"].endswith(version):
                raise SystemExit(f"{url} serves {answer['model']}, and the checkpoint is {version}")
            scores.append([item["score"] for item in answer["data"]])
    return scores


def _chunks(groups: Sequence[PromptGroup], size: int) -> list[Sequence[PromptGroup]]:
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def compare(a: Scores, b: Scores) -> dict[str, float]:
    """How far two engines are apart, in logits and in the order of candidates."""
    differences = [abs(x - y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)]
    best = sum(_best(row) == _best(other) for row, other in zip(a, b, strict=True))
    return {
        "largest_difference": round(max(differences), 6),
        "mean_difference": round(sum(differences) / len(differences), 6),
        "same_best_candidate": round(best / len(a), 4),
        "kendall_tau": round(sum(map(_tau, a, b)) / len(a), 4),
    }


def _best(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _tau(a: Sequence[float], b: Sequence[float]) -> float:
    pairs = list(itertools.combinations(range(len(a)), 2))
    sign: Callable[[float], int] = lambda x: (x > 0) - (x < 0)  # noqa: E731
    return sum(sign(a[i] - a[j]) * sign(b[i] - b[j]) for i, j in pairs) / len(pairs)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--candidates", type=Path)
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--per-problem", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--service", help="base URL of a reward service")
    parser.add_argument("--key-file", type=Path, help="its internal key")
    parser.add_argument("--out", type=Path, help="where the JSON goes, beside standard output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.candidates:
        problems = read_problems(options.candidates, options.problems, options.per_problem)
    else:
        problems = made_problems(options.problems, options.per_problem)
    encoder = PromptEncoder.from_directory(options.checkpoint)
    groups = [encode(encoder, problem) for problem in problems]
    served = None
    if options.service:
        served = of_service(options.service, options.key_file, options.checkpoint.name, problems)
    found = json.dumps(measure(options.checkpoint, groups, options.threads, served), indent=2)
    print(found)
    if options.out:
        options.out.write_text(found + "\n")


def measure(
    checkpoint: Path, groups: Sequence[PromptGroup], threads: int, served: Scores | None = None
) -> dict[str, Any]:
    """All comparisons on one checkpoint.

    Args:
        checkpoint: its directory.
        groups: what both score.
        threads: of our engine.
        served: what a service gave for the same.
    """
    started = time.monotonic()
    exact, rounded = (theirs(checkpoint, dtype, groups) for dtype in (torch.float32, torch.bfloat16))
    (our_exact, exact_bits), (our_rounded, rounded_bits) = (
        ours(checkpoint, dtype, groups, threads) for dtype in ("float32", "bfloat16")
    )
    flat = [value for row in exact for value in row]
    return {
        "checkpoint": checkpoint.name,
        "candidates": len(flat),
        "tokens": sum(len(g.prompt) + len(own) for g in groups for own in g.candidates),
        "scores": {"smallest": round(min(flat), 4), "largest": round(max(flat), 4)},
        "ours_bfloat16_to_transformers_bfloat16": compare(our_rounded, rounded),
        "ours_bfloat16_to_transformers_float32": compare(our_rounded, exact),
        "transformers_bfloat16_to_transformers_float32": compare(rounded, exact),
        "ours_float32_to_transformers_float32": compare(our_exact, exact),
        **(_of_served(served, our_rounded, rounded, exact) if served else {}),
        "bits": {"float32": exact_bits, "bfloat16": rounded_bits},
        "machine": {"cpu": _cpu(), "torch": torch.__version__, "threads": threads, "load": os.getloadavg()[0]},
        "seconds": round(time.monotonic() - started, 1),
    }


def _of_served(served: Scores, ours_: Scores, rounded: Scores, exact: Scores) -> dict[str, Any]:
    pairs = [(a, b) for row, other in zip(served, ours_, strict=True) for a, b in zip(row, other, strict=True)]
    return {
        "service_scores_with_other_bits_than_ours_bfloat16": sum(a != b for a, b in pairs),
        "service_to_transformers_bfloat16": compare(served, rounded),
        "service_to_transformers_float32": compare(served, exact),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            flags = Path("/proc/cpuinfo").read_text()
            return f"{line.partition(': ')[2]}{' (AMX)' if 'amx_bf16' in flags else ''}"
    return platform.processor()


if __name__ == "__main__":
    main()
