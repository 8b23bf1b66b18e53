"""How a solve looks in a terminal, and an answer of the gateway for programs."""

from __future__ import annotations

from types import TracebackType

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from acemath_cli.client import Event
from acemath_core.wire import Solution, SolvedCandidate, Wire

_STEPS = 2  # a candidate is finished, then scored


class CandidateProgress:
    """One bar for each candidate: empty while it is generated, half when it has finished, full when it is scored."""

    def __init__(self, console: Console, n: int) -> None:
        self._progress = Progress(
            TextColumn("candidate {task.fields[number]:>2}"), BarColumn(bar_width=24),
            TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip
        self._tasks: list[TaskID] = [self._progress.add_task("generating", total=_STEPS, number=i) for i in range(n)]

    def __enter__(self) -> CandidateProgress:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self._progress.stop()

    def take(self, event: Event) -> None:
        """Move the bar of the candidate that an event speaks of; other events change nothing."""
        index = event.data.get("index")
        if not isinstance(index, int) or not 0 <= index < len(self._tasks):
            return
        if event.name == "candidate.finished":
            answer = escape(str(event.data.get("answer")))
            self._progress.update(self._tasks[index], completed=1, description=f"answer {answer}, being scored")
        elif event.name == "candidate.scored":
            self._progress.update(self._tasks[index], completed=_STEPS, description=f"score {event.data.get('score')}")
        elif event.name == "candidate.rejected":
            self._progress.update(self._tasks[index], completed=_STEPS, description="stopped: others promise more")


def show(console: Console, solution: Solution) -> None:
    """Print the answer, the chosen solution, every candidate with its score, and where the time went."""
    console.print(
        Panel(escape(solution.solution.strip()), title=f"answer: {escape(str(solution.answer))}", expand=False)
    )
    if solution.candidates:
        console.print(_table(solution))
    times = solution.timings
    stopped = f", {solution.n_rejected} stopped early" if solution.n_rejected else ""
    made = f"{solution.n_generated} candidates ({solution.n_scored} scored{stopped}, {solution.stop_reason})"
    cost = f"{times.total_seconds:.1f} s; {solution.usage.completion_tokens} tokens"
    console.print(f"{solution.selection} of {made} in {cost}", highlight=False)
    console.print(f"policy {solution.models.policy}   reward {solution.models.reward}", highlight=False, style="dim")
    if solution.degraded:
        console.print(f"degraded: {solution.degraded_reason}", style="yellow")


def _table(solution: Solution) -> Table:
    table = Table(title="candidates by score")
    # On a narrow terminal only the text gives way: the numbers are what one looks for.
    for name, width in (("", 1), ("#", 2), ("answer", 8), ("score", 7), ("tokens", 6), ("finish", 6)):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("end of the solution", no_wrap=True, overflow="ellipsis")
    ordered = sorted(solution.candidates, key=lambda one: (one.score is None, -(one.score or 0.0), one.index))
    chosen = next((one.index for one in ordered if one.text == solution.solution), None)
    for candidate in ordered:
        taken = candidate.index == chosen
        table.add_row("→" if taken else "", *_cells(candidate), style="bold" if taken else None)
    return table


def _cells(candidate: SolvedCandidate) -> list[str]:
    score = "–" if candidate.score is None else f"{candidate.score:+.3f}"
    end = " ".join((candidate.text or "").split())[-26:]  # fits beside the numbers in 80 columns
    return [
        str(candidate.index), escape(str(candidate.answer)), score, str(candidate.completion_tokens),
        str(candidate.finish_reason), escape(end),
    ]  # fmt: skip


def print_json(body: Wire) -> None:
    """Print an answer as `--json` has it."""
    typer.echo(body.model_dump_json(indent=2))
