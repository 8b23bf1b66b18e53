"""Best-of-N of others beside ours: same vLLM, same reward model, same problems, in one run.

    python -m bench.bestofn run PROBLEMS.jsonl… --out FILE.json --key-file FILE [--its-hub PYTHON] [--optillm PYTHON]
    python -m bench.bestofn table FILE.json
    python -m bench.bestofn plot FILE.json

Beside a running stack (`make run`). PROBLEMS has one object a line, {"problem": text, "answer": text}. Each way of
asking is a process of its own that solves the same problems with 1, 4 and 16 clients and n = 8 and 16; rounds go
forwards and backwards over the ways: a machine that changes its speed changes it for all. The result is written after
every step.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from acemath_answers import AnswerJudge, extract_answer
from acemath_core.prompts import policy_messages
from bench.bestofn.table import tables
from bench.reward import machine

LEGS = Path(__file__).with_name("legs.py")
STEP_SECONDS = 1800


@dataclass(frozen=True)
class Stack:
    """What every way asks.

    Attributes:
        gateway: URL.
        vllm: URL of a stock server of the same checkpoint, for those who talk to vLLM themselves.
        reward: URL.
        model: what that server calls it.
        key: of our services.
    """

    gateway: str
    vllm: str
    reward: str
    model: str
    key: str

    @classmethod
    def at(cls, options: argparse.Namespace) -> Stack:
        """The running one. The agent's own servers answer only what the gateway asks them, so others need another."""
        models = httpx.get(f"{options.vllm}/v1/models", trust_env=False).raise_for_status().json()["data"]
        key = options.key_file.read_text().strip()
        return cls(options.gateway, options.vllm, options.reward, models[0]["id"], key)


def read_problems(files: list[Path], count: int) -> list[dict[str, str]]:
    """So many of all files together, as many of each, evenly from its beginning to its end."""
    found = []
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        share = count // len(files)
        found += [rows[i * len(rows) // share] for i in range(min(share, len(rows)))]
    return found


@contextlib.contextmanager
def optillm(python: Path, stack: Stack, n: int) -> Iterator[str]:
    """Its server with its best-of-n; yields the URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(python), "-m", "optillm.server", "--approach", "bon", "--best-of-n", str(n), "--model", stack.model,
        "--log", "warning", "--host", "127.0.0.1", "--port", str(port), "--no-ssl-verify",
        "--base-url", f"{stack.vllm}/v1",
    ]  # fmt: skip
    environment = {**os.environ, "OPENAI_API_KEY": stack.key}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", trust_env=False, timeout=5).status_code == 200:
                    break
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait(30)


def ask(python: Path, task: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of one way (`legs.py`)."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(task, file)
        file.flush()
        done = subprocess.run(
            [str(python), str(LEGS), file.name], stdout=subprocess.PIPE, timeout=STEP_SECONDS, check=False
        )
    lines = done.stdout.decode().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]  # some libraries print as they work


def summed(lines: list[dict[str, Any]], problems: list[dict[str, str]], judge: AnswerJudge) -> dict[str, Any]:
    """What a step found; a problem without a line or with an error is wrong."""
    good = [line for line in lines if line["error"] is None]
    right = sum(
        (answer := extract_answer(line["text"])) is not None
        and judge.equivalent(answer, problems[line["index"]]["answer"]).is_equal
        for line in good
    )
    tokens = [line["tokens"] for line in good if line["tokens"] is not None]
    seconds = {line["index"]: round(line["seconds"], 3) for line in good}
    errors = sorted({line["error"] for line in lines if line["error"] is not None})
    return {
        "problems": len(problems),
        "answered": len(good),
        "right": right,
        "errors": errors[:3],
        "seconds": [seconds.get(index) for index in range(len(problems))],
        "wall_seconds": round(max((line["began"] + line["seconds"] for line in lines), default=0.0), 3),
        "tokens": sum(tokens) if tokens else None,
    }


def measure(options: argparse.Namespace) -> None:
    """The `run` command."""
    stack, problems = Stack.at(options), read_problems(options.problems, options.count)
    ways = [way for way in options.ways.split(",") if way != "its_hub" or options.its_hub]
    ways = [way for way in ways if way != "optillm" or options.optillm]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit.stdout.strip() or "unknown",
        "machine": machine.described(),
        "policy": stack.model,
        "problems": len(problems),
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "steps": [],
    }
    with AnswerJudge() as judge:
        for number, n, clients in itertools.product(range(options.rounds), options.n, options.clients):
            for way in ways[:: 1 if number % 2 == 0 else -1]:
                step = one_step(way, n, clients, stack, problems, options)
                row = {"round": number, "way": way, "n": n, "clients": clients}
                result["steps"].append(row | summed(step, problems, judge))
                options.out.write_text(json.dumps(result, indent=1) + "\n")
                shown = {k: v for k, v in result["steps"][-1].items() if k != "seconds"}
                print(shown, flush=True)
    print(tables(result))


def one_step(
    way: str, n: int, clients: int, stack: Stack, problems: list[dict[str, str]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All problems by one way."""
    task = {
        "way": way, "n": n, "clients": clients, "problems": [policy_messages(one["problem"]) for one in problems],
        "gateway": stack.gateway, "vllm": stack.vllm, "reward": stack.reward, "model": stack.model, "key": stack.key,
        "temperature": options.temperature, "max_tokens": options.max_tokens,
    }  # fmt: skip
    if way == "optillm":
        with optillm(options.optillm, stack, n) as url:
            return ask(Path(sys.executable), task | {"optillm": url})
    return ask(options.its_hub if way == "its_hub" else Path(sys.executable), task)


def numbers(text: str) -> list[int]:
    """`1,4,16`."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Read the arguments, do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("problems", type=Path, nargs="+")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--key-file", type=Path, required=True)
    run.add_argument("--gateway", default="http://127.0.0.1:8080")
    run.add_argument("--vllm", required=True, help="URL of a stock vLLM server of the same policy")
    run.add_argument("--reward", default="http://127.0.0.1:8200")
    run.add_argument("--its-hub", type=Path, help="python of an environment with its_hub")
    run.add_argument("--optillm", type=Path, help="python of an environment with optillm")
    run.add_argument("--ways", default="ours,ours-adaptive,plain,its_hub,optillm")
    run.add_argument("--n", type=numbers, default=[8, 16])
    run.add_argument("--clients", type=numbers, default=[1, 4, 16])
    run.add_argument("--count", type=int, default=32, help="problems of a step")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--max-tokens", type=int, default=200)
    run.add_argument("--temperature", type=float, default=0.7)
    for name, does in (("table", "markdown"), ("plot", "a picture beside the result, .svg")):
        commands.add_parser(name, help=does).add_argument("result", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        measure(options)
        return
    result = json.loads(options.result.read_text())
    if options.command == "table":
        print(tables(result))
    else:
        importlib.import_module("bench.bestofn.plot").draw(result, options.result.with_suffix(".svg"))


if __name__ == "__main__":
    main()
