"""`acemath train canary`: what replicas compare, for a checkpoint that no job of ours made."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from acemath_registry.cli_output import progress_bar
from acemath_training.cli_jobs import errors_in_one_sentence

Source = Annotated[str, typer.Argument(help="A checkpoint's directory, or hf://owner/name@revision.")]


def canary(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="The file that is written.")] = Path("canary.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compute a checkpoint's canary by plain transformers, in float32, on this machine's CPU.

    `acemath registry publish SOURCE --metadata FILE` takes the file; the replicas then compare their engine with it
    before they serve the version.
    """
    from acemath_training import canary_for  # noqa: PLC0415 - the command line must start fast
    from acemath_training.progress import Teller  # noqa: PLC0415

    with (
        errors_in_one_sentence(),
        progress_bar(quiet=as_json) as progress,
        canary_for.opened(source, progress) as found,
    ):
        checkpoint, pinned = found
        kind = canary_for.kind_of(checkpoint)
        canary_for.write(canary_for.metadata(checkpoint, Teller("canary", sys.stderr)), out)
    document = {"file": str(out), "kind": kind.value}
    then = f"acemath registry publish {pinned} --name NAME --kind {kind} --metadata {out}"
    typer.echo(json.dumps(document) if as_json else f"{out} has the {kind} canary; publish with it: {then}")
