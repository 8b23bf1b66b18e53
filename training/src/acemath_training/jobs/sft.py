"""Supervised fine-tuning: loss on response tokens, by transformers.Trainer with DeepSpeed.

`python -m acemath_training.jobs.launch sft CONFIG --base DIR --output DIR` starts it under torchrun.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from acemath_training.data.rows import Encoder, Row, collate_sft
from acemath_training.errors import ConfigError
from acemath_training.jobs import full_weights, lora, sft_rows
from acemath_training.jobs.callbacks import JsonlMetrics, TimeLimit
from acemath_training.jobs.checkpoint_guard import CheckpointGuard, Topology, find_resumable
from acemath_training.jobs.config import Optimizer, SftConfig, deepspeed_dict, fingerprint
from acemath_training.jobs.inputs import digests
from acemath_training.jobs.ranks import from_rank_0
from acemath_training.jobs.response_loss import ResponseLoss
from acemath_training.jobs.run_record import RunRecord


class BatchTrainer(Trainer):
    """A Trainer whose data set items are whole batches in a fixed order.

    The order is a pure function of the step (no sampler state), so a resumed run sees the same rows.
    """

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The wrapped model computes its own loss."""
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: DeepSpeed's checkpoint holds the tensors, and gathering them here would be for no reader."""


def training_arguments(optimizer: Optimizer, output: Path, deepspeed: dict[str, object]) -> TrainingArguments:
    """transformers' arguments for a job; one item of the data set is one batch of a rank."""
    return TrainingArguments(
        output_dir=str(output),
        deepspeed=deepspeed,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=optimizer.gradient_accumulation,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type=optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        weight_decay=optimizer.weight_decay,
        adam_beta2=optimizer.adam_beta2,
        max_grad_norm=optimizer.max_grad_norm,
        max_steps=optimizer.max_steps or -1,
        num_train_epochs=optimizer.epochs or 1.0,
        save_steps=optimizer.save_steps,
        save_strategy="steps",
        logging_steps=5,
        optim="adamw_torch",
        bf16=bool(deepspeed["bf16"]["enabled"]),  # type: ignore[index]  # a dict we made
        use_cpu=not torch.cuda.is_available(),
        seed=optimizer.seed,
        data_seed=optimizer.seed,
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=0,
        disable_tqdm=True,
        log_level="warning",
    )


def topology(config: Any, inputs: dict[str, str]) -> Topology:
    """What a resumed run must share with the one that was stopped."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return Topology(
        world_size=world,
        rows_per_device=config.training.rows_per_device,
        gradient_accumulation=config.training.gradient_accumulation,
        seed=config.training.seed,
        zero_stage=config.deepspeed.zero_stage,
        config_sha256=fingerprint(config),
        inputs=inputs,
    )


def job_callbacks(optimizer: Optimizer, output: Path, guard: Topology) -> list[TrainerCallback]:
    """What each job writes and heeds: metrics, whole checkpoints, the time limit."""
    found: list[TrainerCallback] = [JsonlMetrics(output / "metrics.jsonl"), CheckpointGuard(guard)]
    return found if optimizer.max_minutes is None else [*found, TimeLimit(optimizer.max_minutes)]


def build_model(config: SftConfig, base: Path, output: Path, end_of_turn: int) -> ResponseLoss:
    """The base (bf16), its adapters, and the values of the parent (a path from `output`) in them.

    Raises:
        ConfigError: a parent is given without LoRA, or the base's generation config cannot be written again.
        CheckpointError: the parent's adapter does not fit.
    """
    model: nn.Module = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16)
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]  # a PreTrainedModel
    if config.model.lora is None:
        if config.model.parent is not None:
            raise ConfigError("model.parent is an adapter; without lora give the parent checkpoint as base")
        full_weights.prepare(model, end_of_turn)
        return ResponseLoss(model)
    torch.manual_seed(config.training.seed)
    model = lora.inject(model, config.model.lora)
    if config.model.parent is not None:
        values, _ = lora.read(output / config.model.parent)
        lora.restore(model, values, strict=True)
    return ResponseLoss(model)


def run(config: SftConfig, base: Path, output: Path, encoder: Encoder, end_of_turn: int) -> Path:
    """Train one stage (or resume it), write its adapter or checkpoint and, last, its run record; returns the folder.

    Raises:
        ConfigError, DataError, CheckpointError: see there.
    """
    output.mkdir(parents=True, exist_ok=True)
    args = training_arguments(config.training, output, deepspeed_dict(config.deepspeed))
    inputs = from_rank_0(lambda: digests(config, output.parent, base))
    guard = topology(config, inputs)
    resumed = find_resumable(output, guard)
    rows = sft_rows.make(config, output.parent, encoder, end_of_turn, args.world_size)
    batches = rows.batches
    args.max_steps = len(batches) // (config.training.gradient_accumulation * args.world_size)
    trainer = BatchTrainer(
        model=build_model(config, base, output, end_of_turn),
        args=args,
        train_dataset=batches,
        data_collator=_collator(end_of_turn, share=_shares(config)),
        callbacks=job_callbacks(config.training, output, guard),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    _save(trainer, config, base, output)
    if trainer.is_world_process_zero():
        steps = trainer.state.global_step
        cursor = batches.cursor_after(steps * args.world_size * config.training.gradient_accumulation)
        record = RunRecord.of(config, steps=steps, cursor=cursor, log=trainer.state.log_history)
        record.model_copy(update={"inputs": inputs, "rows_left_out": rows.left_out}).write(output)
    return output


def _shares(config: SftConfig) -> bool:
    """Whether a batch's shared beginning is run apart.

    Not when blocks are run again for their gradients, and not under ZeRO stage 3, where the ranks must run the same
    modules in the same order while their batches may or may not share a beginning.
    """
    return not config.training.gradient_checkpointing and config.deepspeed.zero_stage != 3


def _collator(pad: int, share: bool) -> Callable[[list[list[Row]]], dict[str, Tensor]]:
    return lambda batches: collate_sft(batches[0], pad, share=share)


def _save(trainer: BatchTrainer, config: SftConfig, base: Path, output: Path) -> None:
    """The adapter, or the complete checkpoint; every rank takes part in gathering what ZeRO has cut up."""
    values = full_weights.gather(trainer)
    if values is None:
        return
    if config.model.lora is None:
        full_weights.save(trainer.model, values, base, output)
        return
    adapter = lora.trained(values)
    lora.save(output, adapter, {"r": config.model.lora.r, "alpha": config.model.lora.alpha})
    lora.save_for_peft(output / lora.PEFT, adapter, config.model.lora)
