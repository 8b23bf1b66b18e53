"""`acemath solve`: one problem, its candidates as they come, the answer and what it was chosen from."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console

from acemath_cli.arguments import AsJson, Url, gateway_and_key
from acemath_cli.client import AskError, solution_of, solve_stream
from acemath_cli.failures import failing_as
from acemath_cli.render import CandidateProgress, print_json, show
from acemath_core.wire import Selection, Solution, SolveRequest


def solve(
    problem: Annotated[str, typer.Argument(help="the problem; - reads it from standard input")],
    n: Annotated[int, typer.Option("--n", "-n", help="how many candidates, 1 to 64")] = 8,
    selection: Annotated[Selection, typer.Option(help="how the answer is chosen")] = Selection.BEST_OF_N,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="make no more of the n candidates than settle the answer")
    ] = False,
    early_reject: Annotated[
        bool, typer.Option("--early-reject", help="stop the candidates whose scores so far are hopeless")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 makes one greedy candidate")] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="longest candidate, in tokens")] = 1024,
    seed: Annotated[int | None, typer.Option(help="candidate i is sampled with seed + i")] = None,
    deadline: Annotated[float, typer.Option(help="seconds until the best so far is taken")] = 120.0,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Solve a problem by best-of-N on a running gateway; where it asks for a key, set ACEMATH_CLI__API_KEY to yours."""
    with failing_as("solve"):
        request = SolveRequest(
            problem=sys.stdin.read() if problem == "-" else problem,
            n=n, selection=selection, temperature=temperature, max_tokens=max_tokens, seed=seed,
            deadline_seconds=deadline, candidates="full", adaptive=adaptive, early_reject=early_reject,
        )  # fmt: skip
        solution = _ask(*gateway_and_key(url), request, quiet=as_json)
    if as_json:
        print_json(solution)
    else:
        show(Console(), solution)


def _ask(url: str, key: SecretStr | None, request: SolveRequest, *, quiet: bool) -> Solution:
    console = Console(stderr=True, quiet=quiet)
    with CandidateProgress(console, 1 if request.temperature == 0 else request.n) as progress:
        for event in solve_stream(url, key, request):
            if event.name == "solution":
                return solution_of(event)
            progress.take(event)
    raise AskError("the gateway closed the stream before its answer")
