"""`acemath eval …`: sample candidates through a running stack, report the metrics, score pools of candidates."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acemath_answers import AnswerJudge, WorkerLimits
from acemath_evaluation.benchmark import calibrate_sets, combine, find_draws, grade_journal, measure_pools, sample_file
from acemath_evaluation.comparison import compare, load_run
from acemath_evaluation.console import (
    explained,
    finish_calibration,
    finish_comparison,
    finish_run,
    progress,
    show_report,
)
from acemath_evaluation.grading import COMPARISON_SECONDS
from acemath_evaluation.http_calls import Service
from acemath_evaluation.report import write_report
from acemath_evaluation.sampling import SamplingOptions
from acemath_evaluation.settings import EvaluationSettings


class FailedProblems(StrEnum):
    """What `report` makes of problems that failed."""

    WRONG = "wrong"
    LEFT_OUT = "left-out"


app = typer.Typer(no_args_is_help=True, help="Benchmarks: best-of-N against its baselines, with intervals.")

Files = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="JSON Lines, .gz too.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory of the run; give the same one to go on with it.")]
SampleSize = Annotated[
    int | None, typer.Option("--sample", min=1, help="This many rows of each file, always the same.")
]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Calls in flight.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Processes that compare answers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def run(
    files: Files,
    out: Out,
    n: Annotated[int, typer.Option(min=1, max=64, help="Candidates for each problem.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.01, max=2.0)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.95,
    max_tokens: Annotated[int, typer.Option(min=1, max=32768)] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of the run; every problem gets its own from it.")] = 0,
    sample_size: SampleSize = None,
    concurrency: Concurrency = 4,
    as_json: AsJson = False,
) -> None:
    """Sample candidates for the problems of files (`id, problem, answer`); interrupt it and run it again to go on."""
    options = SamplingOptions(n, temperature, top_p, max_tokens, seed)
    with explained():
        settings = EvaluationSettings.from_env()
        gateway = Service(settings.gateway_url, settings.api_key)
        with progress() as show:
            runs = [sample_file(path, out, gateway, options, sample_size, concurrency, show) for path in files]
    finish_run(runs, as_json)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Directory of a run.")],
    n: Annotated[
        int | None, typer.Option(min=1, help="Measure at n candidates; default: all that were asked for.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Best of N on the same draws",
    failed: Annotated[
        FailedProblems, typer.Option(help="What a problem counts as that the run asked for and that failed.")
    ] = FailedProblems.WRONG,
    group: Annotated[
        list[str] | None, typer.Option(help="NAME=SET,SET…: measure these sets as one too; may be given again.")
    ] = None,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Grade a run and write report.md, report.json and curves.png into its directory."""
    with explained():
        journals, groups = find_draws(directory), [_group(text) for text in group or []]
        with progress() as show, AnswerJudge(_limits(workers)) as judge:
            wrong = failed is FailedProblems.WRONG
            sets = [grade_journal(path, judge, show, failed_count_as_wrong=wrong) for path in journals]
        combined = [combine(name, names, sets) for name, names in groups]
        results = [graded.measure(n) for graded in [*sets, *combined]]
        show_report(results, write_report(results, directory, title=title), title, as_json)


@app.command()
def pool(
    files: Files,
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="Candidates in one draw from a pool.")] = 8,
    reward: Annotated[str | None, typer.Option(help="name@version to score with; default: the active one.")] = None,
    sample_size: SampleSize = None,
    concurrency: Concurrency = 4,
    workers: Workers = 2,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Reward model on pools of candidates",
    as_json: AsJson = False,
) -> None:
    """Score pools (`id, problem, answer, candidates: [{text, correct}]`) with the reward service: rm@n, AUC, …"""
    with explained():
        settings = EvaluationSettings.from_env()
        service = Service(settings.reward_url, settings.internal_key())
        with progress() as show, AnswerJudge(_limits(workers)) as judge:
            results = [
                measure_pools(path, out, service, reward, sample_size, concurrency, n, judge, show) for path in files
            ]
        show_report(results, write_report(results, out, title=title), title, as_json)


@app.command(name="compare")
def compare_command(
    baseline: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Run of the release to compare with.")],
    candidate: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Run of the release to judge.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for `acemath registry gates attach`.")],
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Compare two runs of the same problems, each of one release: paired differences with intervals."""
    with explained():
        with progress() as show, AnswerJudge(_limits(workers)) as judge:
            found = compare(load_run(baseline, judge, show), load_run(candidate, judge, show))
        finish_comparison(found, out, as_json)


@app.command(name="calibrate")
def calibrate_command(
    directories: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Directories of runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the gateway: …__CALIBRATION_FILE.")],
    workers: Workers = 2,
) -> None:
    """Fit what one reward version's scores mean on runs: the temperature of votes, P(right | score)."""
    with explained():
        journals = [path for directory in directories for path in find_draws(directory)]
        with progress() as show, AnswerJudge(_limits(workers)) as judge:
            sets = [grade_journal(path, judge, show, failed_count_as_wrong=False) for path in journals]
        finish_calibration(calibrate_sets(sets), out)


def _group(text: str) -> tuple[str, list[str]]:
    name, _, names = text.partition("=")
    if not name or not all(parts := names.split(",")):
        raise typer.BadParameter(f"{text!r} is not NAME=SET,SET…", param_hint="--group")
    return name, parts


def _limits(workers: int) -> WorkerLimits:
    return WorkerLimits(workers=workers, timeout_s=COMPARISON_SECONDS)
