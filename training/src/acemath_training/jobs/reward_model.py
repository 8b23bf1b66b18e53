"""The reward model: an SFT checkpoint with a scalar head, trained on lists of responses.

AceMath's outcome reward model (arXiv 2412.15084, section 4): one linear layer on the last token's hidden
state, listwise Bradley-Terry loss. `python -m acemath_training.jobs.launch reward_model CONFIG …` starts it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PrinterCallback

from acemath_training.data import pools
from acemath_training.data.pools import Pool
from acemath_training.data.rows import Encoder, reward_row
from acemath_training.errors import ConfigError
from acemath_training.jobs import full_weights, lora
from acemath_training.jobs.checkpoint_guard import find_resumable
from acemath_training.jobs.config import RewardConfig, deepspeed_dict
from acemath_training.jobs.inputs import digests
from acemath_training.jobs.ranks import from_rank_0
from acemath_training.jobs.run_record import RunRecord
from acemath_training.jobs.scored_lists import ListScorer, ResponseLists, collate_list, within_length
from acemath_training.jobs.sft import BatchTrainer, job_callbacks, topology, training_arguments

HEAD = "score"


class ListwiseRewardTrainer(BatchTrainer):
    """A Trainer whose micro-batch is one problem with all its responses.

    The loss of a step is the mean over problems, so gradient accumulation averages it; transformers must
    not scale it by a number of tokens.
    """

    model_accepts_loss_kwargs = False


def build_model(config: RewardConfig, base: Path, output: Path) -> ListScorer:
    """The base with a new scalar head, and the SFT adapter (a path from `output`) inside.

    Raises:
        CheckpointError: when the parent's adapter does not fit.
    """
    torch.manual_seed(config.training.seed)
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(base), dtype=torch.bfloat16, num_labels=1)
    if model.config.pad_token_id is None:
        raise ConfigError(f"{base} has no pad_token_id; batches of the reward model need one")
    # A small start: the first scores are near zero, and their differences are what is learned.
    nn.init.normal_(model.score.weight, std=1.0 / model.config.hidden_size)
    if config.model.lora is not None:
        model = lora.inject(model, config.model.lora, head=HEAD)
        if config.model.parent is not None:
            values, _ = lora.read(output / config.model.parent)
            lora.restore(model, values, strict=True)
    return ListScorer(model, config.loss)


def run(config: RewardConfig, base: Path, output: Path, encoder: Encoder) -> Path:
    """Train (or resume) and write the adapter with its run record; returns the folder.

    Raises:
        ConfigError, DataError, CheckpointError: see there.
    """
    output.mkdir(parents=True, exist_ok=True)
    args = training_arguments(config.training, output, deepspeed_dict(config.deepspeed))
    inputs = from_rank_0(lambda: digests(config, output.parent, base))
    guard = topology(config, inputs)
    resumed = find_resumable(output, guard)
    read = [pool for file in (config.data.file, *config.data.more) for pool in pools.read(output.parent / file)]
    found, left_out = within_length(read, encoder, config.data.max_length)
    training, validation = pools.split(found, config.data.validation_fraction, config.data.seed)
    args.max_steps = _steps(config, len(training), args.world_size)
    model = build_model(config, base, output)
    items = args.max_steps * config.training.gradient_accumulation * args.world_size
    pad = int(model.config.pad_token_id)
    trainer = ListwiseRewardTrainer(
        model=model,
        args=args,
        train_dataset=ResponseLists(training, encoder, config.data, items=items, pad=pad),
        data_collator=_only,
        callbacks=job_callbacks(config.training, output, guard),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if trainer.is_world_process_zero():
        record = _measured(trainer, config, validation, encoder, (len(found), len(training)))
        _save(trainer.model, config, base, output)
        record.model_copy(update={"inputs": inputs, "rows_left_out": left_out}).write(output)
    return output


def measure(model: ListScorer, problems: list[Pool], encoder: Encoder, pad: int) -> dict[str, float]:
    """Share of problems whose best-scored candidate is right, of right-wrong pairs in order, and the same by chance.

    `problems` are mixed pools; every candidate is scored.
    """
    top, chance, pairs = [], [], []
    for pool in problems:
        rows = [reward_row(encoder, pool.problem, candidate.text) for candidate in pool.candidates]
        labels = [int(candidate.correct) for candidate in pool.candidates]
        batch = collate_list(rows, labels, pad)
        batch.pop("labels")
        with torch.inference_mode():
            values = model.scores(**batch).tolist()
        top.append(labels[max(range(len(values)), key=values.__getitem__)])
        chance.append(sum(labels) / len(labels))
        right = [value for value, label in zip(values, labels, strict=True) if label]
        wrong = [value for value, label in zip(values, labels, strict=True) if not label]
        pairs += [float(good > bad) for good in right for bad in wrong]
    count = max(len(top), 1)
    return {
        "validation_problems": float(len(top)),
        "validation_rm_at_n": round(sum(top) / count, 4),
        "validation_pass_at_1": round(sum(chance) / count, 4),
        "validation_pair_accuracy": round(sum(pairs) / max(len(pairs), 1), 4),
    }


def _measured(
    trainer: ListwiseRewardTrainer,
    config: RewardConfig,
    validation: list[Pool],
    encoder: Encoder,
    counts: tuple[int, int],
) -> RunRecord:
    model: Any = trainer.model.eval()
    figures = measure(model, validation, encoder, int(model.config.pad_token_id))
    figures |= {"problems_sampled": float(counts[0]), "problems_trained_on": float(counts[1])}
    steps = trainer.state.global_step
    record = RunRecord.of(config, steps=steps, cursor=0, log=trainer.state.log_history)
    return record.model_copy(update={"figures": record.figures | figures})


def _save(model: Any, config: RewardConfig, base: Path, output: Path) -> None:
    if config.model.lora is None:
        full_weights.save(model, model.state_dict(), base, output)
        return
    settings = {"r": config.model.lora.r, "alpha": config.model.lora.alpha}
    lora.save(output, lora.tensors(model, HEAD), settings)


def _steps(config: RewardConfig, problems: int, world: int) -> int:
    if config.training.max_steps is not None:
        return config.training.max_steps
    per_step = config.training.gradient_accumulation * world
    return max(1, round((config.training.epochs or 1.0) * problems / per_step))


def _only(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return items[0]
