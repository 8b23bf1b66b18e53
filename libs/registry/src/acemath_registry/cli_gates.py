"""`acemath registry gates …`: what a channel asks of a release before it points at it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from acemath_core.comparison import Comparison
from acemath_core.errors import InvalidRequest
from acemath_registry.cli_common import (
    DEFAULT_ROOT,
    AsJson,
    By,
    ChannelName,
    Root,
    errors,
    existing,
    misfit,
    note_missing,
)
from acemath_registry.cli_output import print_document, print_rows
from acemath_registry.documents import MAX_DOCUMENT_BYTES
from acemath_registry.durable import read_file
from acemath_registry.gates import CanaryGate, EvaluationGate, Gates

app = typer.Typer(no_args_is_help=True, help="What a channel asks of a release before it points at it.")


@app.command()
def show(channel: ChannelName, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show what a channel asks; nothing when no gates were declared."""
    with errors(as_json):
        registry = existing(root)
        gates = registry.gates(channel)
        note_missing(registry, channel)
    _print_gates(channel, gates, as_json)


@app.command(name="set")
def declare(
    channel: ChannelName,
    by: By,
    canary: Annotated[
        CanaryGate | None, typer.Option(help="Both versions have one; or a replica reproduced it.")
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="SET:METRIC:POINTS, e.g. gsm8k:rm@8:2: at most so many points worse; may be given again."),
    ] = None,
    min_problems: Annotated[int, typer.Option(min=1, help="Of a set; fewer decide nothing.")] = 100,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Declare all that a channel asks, in place of what it asked before; without options it asks nothing."""
    with errors(as_json):
        asked = tuple(_evaluation(text, min_problems) for text in evaluation or [])
        try:
            gates = Gates(canary=canary, evaluations=asked)
        except ValidationError as error:
            raise misfit(error, "evaluation") from error
        registry = existing(root)
        registry.set_gates(channel, gates, by=by)
        note_missing(registry, channel)
    _print_gates(channel, gates, as_json)


@app.command()
def attach(
    file: Annotated[Path, typer.Argument(help="What `acemath eval compare` wrote.")],
    by: By,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Bind a comparison of two releases to both; of each two releases the last one counts."""
    with errors(as_json):
        attached = existing(root).attach_evaluation(_comparison(file), by=by)
    comparison = attached.comparison
    document = {
        "candidate": comparison.candidate.release,
        "baseline": comparison.baseline.release,
        "complete": comparison.complete,
        "sha256": attached.comparison_sha256,
        "by": attached.by,
    }
    print_document(document, as_json=as_json)


@app.command()
def check(
    channel: ChannelName,
    release: Annotated[str, typer.Option(help="Id of the release.")],
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Say whether a channel's gates would let a release pass now; the exit status is 1 when not."""
    with errors(as_json):
        registry = existing(root)
        refusals = registry.ask_gates(channel, release)
        note_missing(registry, channel)
    print_rows("refusals", [one.document() for one in refusals], as_json=as_json)
    if refusals:
        raise typer.Exit(1)


def _print_gates(channel: str, gates: Gates, as_json: bool) -> None:
    document: dict[str, Any] = {"channel": channel, **gates.model_dump(mode="json")}
    if not as_json:
        document = {"channel": channel, "canary": document["canary"] or "not asked"} | {
            f"{one.metric} on {one.set}": f"at most {100 * one.margin:g} points worse, of {one.min_problems} problems"
            for one in gates.evaluations
        }
    print_document(document, as_json=as_json)


def _evaluation(text: str, min_problems: int) -> EvaluationGate:
    try:
        set_name, metric, points = text.rsplit(":", 2)
        return EvaluationGate(set=set_name, metric=metric, margin=float(points) / 100, min_problems=min_problems)
    except ValidationError as error:
        raise misfit(error, "evaluation") from error
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not SET:METRIC:POINTS, e.g. gsm8k:rm@8:2", param="evaluation") from error


def _comparison(file: Path) -> Comparison:
    try:
        return Comparison.model_validate_json(read_file(file, MAX_DOCUMENT_BYTES))
    except OSError as error:
        raise InvalidRequest(
            f"{file}: {error.strerror}; give what `acemath eval compare` wrote", param="file"
        ) from error
    except ValidationError as error:
        raise misfit(error, "file") from error
