"""`python -m bench.interop`, from the checkout's root: somebody else's programs against real services. See README.md.

    python -m bench.interop --schemathesis DIR --clients DIR [gateway] [reward] [policy] [langchain] [lm-eval]

The first three are schemathesis at that service.

Both directories are environments that `env.sh` makes. Ends with 1 when any of the programs found fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.interop.services import Service, gateway, policy, reward

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = 900


@dataclass(frozen=True)
class Place:
    """Where a program runs and what it talks to.

    Attributes:
        name: the program's.
        work: an empty folder.
        service: what it is to talk to.
        options: this program's own.
    """

    name: str
    work: Path
    service: Service
    options: argparse.Namespace


def schemathesis(place: Place) -> list[str]:
    """All checks over every operation of `/openapi.json`."""
    shutil.copy(HERE / "schemathesis_hooks.py", place.work)
    own = HERE / f"schemathesis-{place.name}.toml"
    configuration = (HERE / "schemathesis.toml").read_text() + (own.read_text() if own.exists() else "")
    (place.work / "schemathesis.toml").write_text(configuration)
    program = place.options.schemathesis.absolute() / "bin" / "schemathesis"
    key = ["--header", f"Authorization: Bearer {place.service.key}"]
    more = ["--max-examples", str(place.options.examples), "--no-color"]
    return [str(program), "run", f"{place.service.url}/openapi.json", *key, *more]


def langchain(place: Place) -> list[str]:
    """LangChain's ChatOpenAI."""
    return [str(_python(place)), str(HERE / "chat_openai.py"), place.service.url, place.service.key]


def lm_eval(place: Place) -> list[str]:
    """lm-evaluation-harness' backend `local-chat-completions`, on a task of four problems."""
    for source in (HERE / "lm_task").iterdir():
        shutil.copy(source, place.work)
    model = f"model=acemath,base_url={place.service.url}/v1/chat/completions,num_concurrent=4,max_retries=1"
    chosen = ["--model", "local-chat-completions", "--model_args", model, "--tasks", "acemath_word_problems"]
    ours = ["--include_path", ".", "--apply_chat_template", "--gen_kwargs", place.options.gen_kwargs]
    return [str(_python(place)), "-m", "lm_eval", "run", *chosen, *ours, "--output_path", "lm-eval"]


@dataclass(frozen=True)
class Program:
    """What is run, and at which service."""

    command: Callable[[Place], list[str]]
    service: Callable[[Path], AbstractContextManager[Service]]


PROGRAMS: dict[str, Program] = {
    "gateway": Program(schemathesis, gateway),
    "reward": Program(schemathesis, reward),
    "policy": Program(schemathesis, policy),
    "langchain": Program(langchain, gateway),
    "lm-eval": Program(lm_eval, gateway),
}


def _python(place: Place) -> Path:
    """Not resolved: an environment's python is a link."""
    return Path(place.options.clients).absolute() / "bin" / "python"


def run(name: str, options: argparse.Namespace) -> bool:
    """One program at a service of its own; whether it found nothing."""
    print(f"== {name}", flush=True)
    program = PROGRAMS[name]
    with tempfile.TemporaryDirectory(prefix="interop-") as folder, program.service(Path(folder)) as service:
        (work := Path(folder, "work")).mkdir()
        command = program.command(Place(name, work, service, options))
        plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        offline = {"OPENAI_API_KEY": service.key, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")}
        told = plain | offline | dict(service.told)
        ended = subprocess.run(command, cwd=work, env=told, timeout=SECONDS, check=False)
        found = ended.returncode == 0 and (name != "lm-eval" or _all_right(work))
    print(f"== {name}: {'nothing found' if found else 'FAILED'}", flush=True)
    return found


def _all_right(work: Path) -> bool:
    """Whether the harness read four right answers: it ends with 0 whatever it read."""
    results = json.loads(next(work.glob("lm-eval/**/results_*.json")).read_text())
    return bool(results["results"]["acemath_word_problems"]["exact_match,boxed"] == 1.0)


def main() -> int:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"default: {' '.join(PROGRAMS)}")
    parser.add_argument("--schemathesis", type=Path, default=ROOT / ".local" / "interop" / "schemathesis")
    parser.add_argument("--clients", type=Path, default=ROOT / ".local" / "interop" / "clients")
    parser.add_argument("--examples", type=int, default=100, help="schemathesis' for each operation")
    parser.add_argument("--gen-kwargs", default="temperature=0.7,best_of=4", help="lm-evaluation-harness'")
    options = parser.parse_args()
    if unknown := set(options.programs) - PROGRAMS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    found = [run(name, options) for name in options.programs or PROGRAMS]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
