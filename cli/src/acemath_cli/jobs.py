"""`acemath jobs`: hand a file of problems to a running gateway, watch it, fetch the results, end it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from acemath_cli.arguments import AsJson, Url, gateway_and_key
from acemath_cli.client import AskError
from acemath_cli.failures import failing_as
from acemath_cli.job_client import FILE_KIND, Jobs, row_of
from acemath_cli.render import print_json
from acemath_core.jobs import Job, JobProgress, JobState, LineResult
from acemath_core.wire import SolveRequest, Wire

app = typer.Typer(no_args_is_help=True, help="Many problems while nobody waits: submit, watch, results, cancel.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="its id; `acemath jobs list`")]


@app.command()
def submit(
    file: Annotated[
        str | None, typer.Argument(help="JSON Lines, each with the fields of /v1/solve; - is stdin")
    ] = None,
    problem: Annotated[str | None, typer.Option(help="one problem in place of a file")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="of --problem: how many candidates")] = None,
    seed: Annotated[int | None, typer.Option(help="of --problem: candidate i is sampled with seed + i")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="of --problem: longest candidate")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL that is told of the end")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="the same key is the same job, however often sent")
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="stay until the job has ended")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Hand over a file of problems, or one problem. Prints the job's id."""
    fields = {"n": n, "seed": seed, "max_tokens": max_tokens}
    with failing_as("jobs submit"):
        body, kind = _body(file, problem, {name: value for name, value in fields.items() if value is not None})
        jobs = _jobs(url)
        made = jobs.submit(body, kind, webhook, idempotency_key)
        if not follow:
            _print(made, as_json=as_json, text=f"{made.id}")
            return
        ended = _follow(jobs, made.id, quiet=as_json)
    _print_end(ended, as_json=as_json)


@app.command(name="list")
def mine(
    limit: Annotated[int, typer.Option(help="at most so many")] = 100, url: Url = None, as_json: AsJson = False
) -> None:
    """List your jobs, the youngest first."""
    with failing_as("jobs list"):
        found = _jobs(url).mine(limit)
    _print(found, as_json=as_json, text="\n".join(_line_of(job) for job in found.data) or "no jobs")


@app.command()
def watch(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Follow a job to its end; exit status 0 when it completed, 1 when it failed, was cancelled or expired."""
    with failing_as("jobs watch"):
        ended = _follow(_jobs(url), job_id, quiet=as_json)
    _print_end(ended, as_json=as_json)


@app.command()
def results(
    job_id: JobId,
    offset: Annotated[int, typer.Option(help="results to leave out: so many as you have already", min=0)] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file for the rows, JSON Lines")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print the results in the order of the file, as far as there are; with --json or --output as JSON Lines."""
    with failing_as("jobs results"):
        rows = _jobs(url).results(job_id, offset)
        if output is not None:
            _write(rows, output)
            return
        for row in rows:
            typer.echo(row.decode() if as_json else _text_of(row_of(row)))


@app.command()
def cancel(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """End a job: lines that wait are never worked on, those that run stop; what has a result is kept."""
    with failing_as("jobs cancel"):
        gone = _jobs(url).cancel(job_id)
    _print(gone, as_json=as_json, text=_line_of(gone))


def _jobs(url: str | None) -> Jobs:
    return Jobs(*gateway_and_key(url))


def _body(file: str | None, problem: str | None, fields: dict[str, int]) -> tuple[bytes, str]:
    if (file is None) == (problem is None):
        raise AskError("give a file, or --problem")
    if problem is not None:
        request = SolveRequest.model_validate({"problem": problem, **fields})
        return request.model_dump_json(exclude_unset=True).encode(), "application/json"
    if fields:
        raise AskError(f"--{next(iter(fields)).replace('_', '-')} goes with --problem; in a file each line has its own")
    try:
        return (sys.stdin.buffer.read() if file == "-" else Path(file or "").read_bytes()), FILE_KIND
    except OSError as error:
        raise AskError(f"{file}: {error.strerror}") from error


def _follow(jobs: Jobs, job_id: str, *, quiet: bool) -> Job:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("queued", total=None)
        for seen in jobs.follow(job_id):
            if isinstance(seen, Job):
                return seen
            progress.update(
                task, total=seen.counts.total, completed=_done(seen), description=_said(seen.state, seen.counts.failed)
            )
    raise AskError("the gateway ended the stream before the job had ended")


def _done(seen: Job | JobProgress) -> int:
    return seen.counts.succeeded + seen.counts.failed


def _said(state: JobState, failed: int) -> str:
    return f"{state} ({failed} failed)" if failed else str(state)


def _print_end(job: Job, *, as_json: bool) -> None:
    _print(job, as_json=as_json, text=_line_of(job))
    if job.state is not JobState.COMPLETED:
        raise typer.Exit(1)


def _line_of(job: Job) -> str:
    said = _said(job.state, job.counts.failed)
    tokens = f"{job.usage.completion_tokens} tokens"
    message = f"  webhook {job.webhook.state}" if job.webhook else ""
    return f"{job.id}  {said}  {_done(job)}/{job.counts.total}  {tokens}{message}"


def _text_of(row: LineResult) -> str:
    if row.solution is not None:
        score = "" if row.solution.score is None else f"{row.solution.score:+.3f}"
        return f"{row.line}\t{row.state}\t{row.solution.answer}\t{score}"
    reason = "" if row.error is None else f"{row.error.code}: {row.error.message}"
    return f"{row.line}\t{row.state}\t{reason}\t"


def _write(rows: Iterator[bytes], output: Path) -> None:
    count = 0
    try:
        with output.open("wb") as file:
            for row in rows:
                file.write(row + b"\n")
                count += 1
    except OSError as error:
        raise AskError(f"{output}: {error.strerror}") from error
    typer.echo(f"{count} results in {output}", err=True)


def _print(body: Wire, *, as_json: bool, text: str) -> None:
    if as_json:
        print_json(body)
    else:
        typer.echo(text)
