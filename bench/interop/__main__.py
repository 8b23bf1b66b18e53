"""`python -m bench.interop`, from the checkout's root: somebody else's programs against a real gateway. See README.md.

    python -m bench.interop --schemathesis DIR --clients DIR [schemathesis] [langchain] [lm-eval]

Both directories are environments that `env.sh` makes. Ends with 1 when any of the programs found fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = 900


@dataclass(frozen=True)
class Place:
    """Where a program runs and what it talks to.

    Attributes:
        work: an empty folder.
        url: the gateway's.
        key: one of its API keys.
        options: this program's own.
    """

    work: Path
    url: str
    key: str
    options: argparse.Namespace


def schemathesis(place: Place) -> list[str]:
    """All checks over every operation of `/openapi.json`."""
    for name in ("schemathesis.toml", "schemathesis_hooks.py"):
        shutil.copy(HERE / name, place.work)
    program = place.options.schemathesis.absolute() / "bin" / "schemathesis"
    key = ["--header", f"Authorization: Bearer {place.key}"]
    more = ["--max-examples", str(place.options.examples), "--no-color"]
    return [str(program), "run", f"{place.url}/openapi.json", *key, *more]


def langchain(place: Place) -> list[str]:
    """LangChain's ChatOpenAI."""
    return [str(_python(place)), str(HERE / "chat_openai.py"), place.url, place.key]


def lm_eval(place: Place) -> list[str]:
    """lm-evaluation-harness' backend `local-chat-completions`, on a task of four problems."""
    for source in (HERE / "lm_task").iterdir():
        shutil.copy(source, place.work)
    model = f"model=acemath,base_url={place.url}/v1/chat/completions,num_concurrent=4,max_retries=1"
    chosen = ["--model", "local-chat-completions", "--model_args", model, "--tasks", "acemath_word_problems"]
    ours = ["--include_path", ".", "--apply_chat_template", "--gen_kwargs", place.options.gen_kwargs]
    return [str(_python(place)), "-m", "lm_eval", "run", *chosen, *ours, "--output_path", "lm-eval"]


PROGRAMS: dict[str, Callable[[Place], list[str]]] = {
    "schemathesis": schemathesis,
    "langchain": langchain,
    "lm-eval": lm_eval,
}


def _python(place: Place) -> Path:
    """Not resolved: an environment's python is a link."""
    return Path(place.options.clients).absolute() / "bin" / "python"


def run(name: str, options: argparse.Namespace) -> bool:
    """One program at a gateway of its own; whether it found nothing."""
    print(f"== {name}", flush=True)
    with tempfile.TemporaryDirectory(prefix="interop-") as folder, _gateway(Path(folder)) as (url, key):
        (work := Path(folder, "work")).mkdir()
        command = PROGRAMS[name](Place(work, url, key, options))
        plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        offline = {"OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")}
        ended = subprocess.run(command, cwd=work, env=plain | offline, timeout=SECONDS, check=False)
        found = ended.returncode == 0 and (name != "lm-eval" or _all_right(work))
    print(f"== {name}: {'nothing found' if found else 'FAILED'}", flush=True)
    return found


def _all_right(work: Path) -> bool:
    """Whether the harness read four right answers: it ends with 0 whatever it read."""
    results = json.loads(next(work.glob("lm-eval/**/results_*.json")).read_text())
    return bool(results["results"]["acemath_word_problems"]["exact_match,boxed"] == 1.0)


@contextlib.contextmanager
def _gateway(folder: Path) -> Iterator[tuple[str, str]]:
    """A gateway with one API key, before the tests' doubles."""
    key, keys = secrets.token_urlsafe(24), folder / "api.keys"
    keys.touch(0o600)
    keys.write_text(key)
    command = [sys.executable, str(ROOT / "tests" / "doubles" / "whole_gateway.py"), f"API_KEYS_FILE={keys}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit("the gateway did not start; its reason is above")
            yield url, key
        finally:
            process.terminate()
            process.wait(60)


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
