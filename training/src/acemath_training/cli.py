"""`acemath data …` and `acemath train …`: what training reads, and its jobs. `--json` prints one document."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from acemath_registry.cli_common import DEFAULT_ROOT, Root, SignKey
from acemath_training.cli_canary import canary
from acemath_training.cli_delivery import Beside, By, Licence, Promote, PublishAs, run_job, wished
from acemath_training.cli_jobs import errors_in_one_sentence, mixture_of

data = typer.Typer(no_args_is_help=True, help="Training problems: look at them, prepare them.")
train = typer.Typer(no_args_is_help=True, help="Training jobs and the embedded checkpoints.")
train.command()(canary)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Config = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The job's YAML file.")]
Base = Annotated[Path, typer.Option("--base", exists=True, file_okay=False, help="Plain checkpoint to start from.")]
Output = Annotated[Path, typer.Option("--output", help="Folder of checkpoints and of the result.")]
Ranks = Annotated[int, typer.Option("--ranks", min=1, help="Processes; on a CPU one per core works best.")]


@data.command("splits")
def show_splits(as_json: AsJson = False) -> None:
    """The families that are held out from training."""
    from acemath_training.data import splits  # noqa: PLC0415 - the command line must start fast

    found = splits.load()
    if as_json:
        typer.echo(found.model_dump_json())
        return
    for source, families in sorted(found.held_out.items()):
        typer.echo(f"{source}: {len(families)} held out: {', '.join(families)}")


@data.command("show")
def show_problems(
    config: Config,
    count: Annotated[int, typer.Option(min=1, max=10_000)] = 3,
    first: Annotated[int, typer.Option(min=0, help="Row of the stream to start at.")] = 0,
    work_dir: Annotated[Path, typer.Option(help="Where the configuration's files are.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Rows of a job's mixture, as it would be trained on."""
    with errors_in_one_sentence():
        from acemath_training.data.mixture import Mixture  # noqa: PLC0415

        chosen = mixture_of(config)
        stream = Mixture(list(chosen.mixture), chosen.seed, work_dir)
        rows = [stream[index] for index in range(first, first + count)]
    if as_json:
        typer.echo(json.dumps([_document(row) for row in rows], ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"[{row.key}]\n{row.problem}\n{row.solution}\n")
    typer.echo(", ".join(f"{key} {number}" for key, number in Counter(row.source for row in rows).items()))


@data.command("held-out")
def write_held_out(
    source: Annotated[str, typer.Argument(help="stories, word_problems or gsm_symbolic")],
    out: Annotated[Path, typer.Argument(help="JSON Lines file for `acemath eval`.")],
    per_family: Annotated[int, typer.Option(min=1, max=50)] = 15,
    as_json: AsJson = False,
) -> None:
    """Test problems of the families that training never sees."""
    from acemath_training.data import held_out  # noqa: PLC0415

    makers = {
        "stories": held_out.story_rows,
        "word_problems": held_out.word_problem_rows,
        "gsm_symbolic": held_out.gsm_symbolic_rows,
    }
    if source not in makers:
        typer.echo(f"error: no source {source!r}; there are: {', '.join(makers)}", err=True)
        raise typer.Exit(1)
    with errors_in_one_sentence():
        rows = list(makers[source](per_family))
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    families = len({row["meta"]["template"] for row in rows})
    found = {"rows": len(rows), "families": families, "file": str(out)}
    typer.echo(json.dumps(found) if as_json else f"{len(rows)} problems of {families} families in {out}")


@data.command("unseen")
def drop_overlap(
    benchmark: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON Lines with `problem`.")],
    out: Annotated[Path, typer.Argument(help="The rows that no template could have written.")],
    as_json: AsJson = False,
) -> None:
    """Drop a benchmark's rows that the training templates were made from (gsm_symbolic is GSM8K's test set)."""
    from acemath_training.data import gsm8k  # noqa: PLC0415
    from acemath_training.data.overlap import TemplateOverlap  # noqa: PLC0415

    with errors_in_one_sentence():
        overlap = TemplateOverlap()
        every = list(gsm8k.rows(benchmark))
        kept = [row for row in every if not overlap.touches(row["problem"])]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    found = {"rows": len(kept), "dropped": len(every) - len(kept), "file": str(out)}
    typer.echo(json.dumps(found) if as_json else f"{len(kept)} rows kept, {len(every) - len(kept)} dropped, in {out}")


@data.command("gsm8k")
def prepare_gsm8k(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="GSM8K's train file.")],
    out: Annotated[Path, typer.Argument(help="The prepared file.")],
    against: Annotated[list[Path] | None, typer.Option(help="Test problems to keep out (JSON Lines).")] = None,
    hashes: Annotated[Path | None, typer.Option(help="sha256 of statements to keep out, one per line.")] = None,
    max_lines: Annotated[int, typer.Option(min=1)] = 3,
    max_characters: Annotated[int, typer.Option(min=1)] = 480,
    as_json: AsJson = False,
) -> None:
    """Clean GSM8K's training problems and drop those that touch a test set."""
    from acemath_training.data import gsm8k  # noqa: PLC0415
    from acemath_training.data.decontaminate import Decontaminator  # noqa: PLC0415

    with errors_in_one_sentence():
        tests = [row["problem"] for path in against or [] for row in gsm8k.rows(path)]
        keep_out = Decontaminator(tests, hashes.read_text().split() if hashes else ())
        problems = gsm8k.prepare(source, keep_out, max_lines=max_lines, max_characters=max_characters)
        gsm8k.write(problems, out)
    typer.echo(json.dumps({"rows": len(problems), "file": str(out)}) if as_json else f"{len(problems)} rows in {out}")


@train.command("sft")
def train_sft(
    config: Config,
    base: Base,
    output: Output,
    ranks: Ranks = 2,
    publish: PublishAs = None,
    promote: Promote = None,
    beside: Beside = None,
    licence: Licence = None,
    by: By = None,
    sign_key: SignKey = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Supervised fine-tuning under DeepSpeed; the same command resumes a stopped run."""
    wish = wished(publish, promote, beside, licence, by, sign_key, root)
    run_job("sft", config, base, output, ranks, wish, as_json=as_json)


@train.command("reward-model")
def train_reward(
    config: Config,
    base: Base,
    output: Output,
    ranks: Ranks = 2,
    publish: PublishAs = None,
    promote: Promote = None,
    beside: Beside = None,
    licence: Licence = None,
    by: By = None,
    sign_key: SignKey = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """A listwise reward model under DeepSpeed; the same command resumes a stopped run."""
    wish = wished(publish, promote, beside, licence, by, sign_key, root)
    run_job("reward_model", config, base, output, ranks, wish, as_json=as_json)


@train.command("cards")
def show_cards(as_json: AsJson = False) -> None:
    """The committed adapters and what was measured of them."""
    from acemath_training.embedded import cards  # noqa: PLC0415

    with errors_in_one_sentence():
        found = [cards.read(path) for kind in ("policy", "reward") for path in cards.stages(cards.DEFAULT_ROOT, kind)]
    if as_json:
        typer.echo(json.dumps([card.model_dump(mode="json") for card in found]))
        return
    for card in found:
        typer.echo(f"{card.kind} {card.stage}: {card.steps} steps, {card.figures}")


def _document(row: Any) -> dict[str, str]:
    return {"source": row.source, "family": row.family, "problem": row.problem, "solution": row.solution}
