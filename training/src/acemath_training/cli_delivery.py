"""`acemath train sft|reward-model`: run the job and, where that is wished, publish and promote what it made."""

import json
from pathlib import Path
from typing import Annotated

import typer

from acemath_registry import SigningKey
from acemath_training.cli_jobs import check_environment, errors_in_one_sentence, load_job
from acemath_training.delivery import Delivered, Delivery, check, deliver
from acemath_training.errors import ConfigError
from acemath_training.left_alone import Standing

PublishAs = Annotated[
    str | None, typer.Option("--publish", help="Publish the result under this name when the job has ended.")
]
Promote = Annotated[
    str | None, typer.Option("--promote", help="With --publish: point this channel at the result; services take over.")
]
Beside = Annotated[
    str | None,
    typer.Option("--with", help="name@version of the release's other model; else the one that the channel has."),
]
Licence = Annotated[str | None, typer.Option("--licence", help="SPDX expression; else that of a published base.")]
By = Annotated[str | None, typer.Option("--by", help="Who publishes, for the audit log; else the account's name.")]


def wished(
    publish: str | None,
    promote: str | None,
    beside: str | None,
    licence: str | None,
    by: str | None,
    sign_key: Path | None,
    root: str,
) -> Delivery | None:
    """What is to become of the result; None: it stays in its folder. Ends with status 1 where options contradict."""
    with errors_in_one_sentence():
        if publish is None:
            if promote or beside or licence or sign_key:
                raise ConfigError("--promote, --with, --licence and --sign-key belong to --publish NAME; give it too")
            return None
        signer = None if sign_key is None else SigningKey.read(sign_key)
        whose = {} if by is None else {"by": by}
        return Delivery(publish, root, promote, beside, licence, signer=signer, **whose)


def run_job(
    job: str, config: Path, base: Path, output: Path, ranks: int, wish: Delivery | None, *, as_json: bool
) -> None:
    """Train, deliver, say what came of it; ends with the job's status, or 1 when it could not be delivered."""
    from acemath_training.jobs.config import CandidatesConfig  # noqa: PLC0415 - the command line must start fast

    with errors_in_one_sentence():
        check_environment()
        found = load_job(config)
        if isinstance(found, CandidatesConfig) or found.job != job:
            raise ConfigError(f"{config.name} is a job of kind {found.job}, not {job}")
        began = Standing() if wish is None else check(wish, job, base, lora=found.model.lora is not None)
    from acemath_training.jobs import launch  # noqa: PLC0415

    status = launch.main([job, str(config), "--base", str(base), "--output", str(output), "--ranks", str(ranks)])
    delivered: Delivered | None = None
    if status == 0 and wish is not None:
        with errors_in_one_sentence():
            delivered = deliver(job, base, output, wish, began)
    if as_json:
        typer.echo(json.dumps({"status": status, "output": str(output)} | _document(delivered)))
    raise typer.Exit(status)


def _document(delivered: Delivered | None) -> dict[str, object]:
    if delivered is None:
        return {}
    return {"model": str(delivered.model), "release": delivered.release, "generation": delivered.generation}
