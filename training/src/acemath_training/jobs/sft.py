"""Supervised fine-tuning: loss on response tokens, by transformers.Trainer with DeepSpeed.

`python -m acemath_training.jobs.launch sft CONFIG --base DIR --output DIR` starts it under torchrun.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments

from acemath_training.data.conversations import Conversations
from acemath_training.data.mixture import Mixture
from acemath_training.data.rows import Encoder, Row, SftBatches, collate_sft, sft_row
from acemath_training.errors import ConfigError
from acemath_training.jobs import lora
from acemath_training.jobs.callbacks import JsonlMetrics, TimeLimit
from acemath_training.jobs.checkpoint_guard import CheckpointGuard, Topology, find_resumable
from acemath_training.jobs.config import Optimizer, SftConfig, deepspeed_dict, fingerprint
from acemath_training.jobs.response_loss import ResponseLoss
from acemath_training.jobs.run_record import RunRecord
from acemath_training.jobs.shared_prefix import inner

END_OF_TURN = "<|im_end|>"


class BatchTrainer(Trainer):
    """A Trainer whose data set items are whole batches in a fixed order.

    The order is a pure function of the step (no sampler state), so a resumed run sees the same rows. Only
    the trained tensors are written beside DeepSpeed's own checkpoint, never a second copy of the base.
    """

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The wrapped model computes its own loss."""
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        return None


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


def topology(config: Any) -> Topology:
    """What a resumed run must share with the one that was stopped."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return Topology(
        world_size=world,
        rows_per_device=config.training.rows_per_device,
        gradient_accumulation=config.training.gradient_accumulation,
        seed=config.training.seed,
        zero_stage=config.deepspeed.zero_stage,
        config_sha256=fingerprint(config),
    )


def build_model(config: SftConfig, base: Path, output: Path) -> ResponseLoss:
    """The base (bf16), its adapters, and the values of the parent (a path from `output`) in them.

    Raises:
        ConfigError: a parent is given without LoRA.
        CheckpointError: the parent's adapter does not fit.
    """
    model: nn.Module = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16)
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]  # a PreTrainedModel
    if config.model.lora is None:
        if config.model.parent is not None:
            raise ConfigError("model.parent is an adapter; without lora give the parent checkpoint as base")
        return ResponseLoss(model)
    torch.manual_seed(config.training.seed)
    model = lora.inject(model, config.model.lora)
    if config.model.parent is not None:
        values, _ = lora.read(output / config.model.parent)
        lora.restore(model, values, strict=True)
    return ResponseLoss(model)


def run(config: SftConfig, base: Path, output: Path, encoder: Encoder, end_of_turn: int) -> Path:
    """Train one stage (or resume it) and write the adapter with its run record; returns the folder.

    Raises:
        ConfigError, DataError, CheckpointError: see there.
    """
    output.mkdir(parents=True, exist_ok=True)
    args = training_arguments(config.training, output, deepspeed_dict(config.deepspeed))
    batches = sft_batches(config, output.parent, encoder, end_of_turn, args.world_size)
    guard = topology(config)
    args.max_steps = len(batches) // (config.training.gradient_accumulation * args.world_size)
    callbacks: list[Any] = [JsonlMetrics(output / "metrics.jsonl"), CheckpointGuard(guard)]
    if config.training.max_minutes is not None:
        callbacks.append(TimeLimit(config.training.max_minutes))
    trainer = BatchTrainer(
        model=build_model(config, base, output),
        args=args,
        train_dataset=batches,
        data_collator=_collator(end_of_turn, share=not config.training.gradient_checkpointing),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    resumed = find_resumable(output, guard)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if trainer.is_world_process_zero():
        steps = trainer.state.global_step
        cursor = batches.cursor_after(steps * args.world_size * config.training.gradient_accumulation)
        RunRecord.of(config, steps=steps, cursor=cursor, log=trainer.state.log_history).write(output)
        _save_adapter(trainer.model, config, output)
    return output


def sft_batches(config: SftConfig, work_dir: Path, encoder: Encoder, end_of_turn: int, world: int) -> SftBatches:
    """The stream of batches for all ranks: rank r takes items r, r + world, … in Trainer's order.

    Raises:
        ConfigError: a generated mixture has no end, so it needs max_steps.
    """
    per_step = config.training.rows_per_device * config.training.gradient_accumulation * world
    row, rows = _stream(config, work_dir, encoder, end_of_turn)
    steps = config.training.max_steps
    if steps is None:
        if rows is None:
            raise ConfigError("a generated mixture has no epochs; give training.max_steps")
        steps = max(1, round((config.training.epochs or 1.0) * rows / per_step))
    return SftBatches(
        row,
        rows_per_batch=config.training.rows_per_device,
        batches=steps * config.training.gradient_accumulation * world,
        cursor=config.data.cursor,
        max_length=config.data.max_length,
    )


def _stream(
    config: SftConfig, work_dir: Path, encoder: Encoder, end_of_turn: int
) -> tuple[Callable[[int], Row], int | None]:
    """Rows by number, and how many make an epoch (None: the stream is endless)."""
    if config.data.file is not None:
        conversations = Conversations(work_dir / config.data.file, encoder, end_of_turn, config.data.seed)
        return conversations.row, len(conversations)
    mixture = Mixture(list(config.data.mixture), config.data.seed, work_dir)
    return (lambda index: sft_row(encoder, mixture[index], end_of_turn)), None


def _collator(pad: int, share: bool) -> Callable[[list[list[Row]]], dict[str, Tensor]]:
    return lambda batches: collate_sft(batches[0], pad, share=share)


def _save_adapter(model: Any, config: SftConfig, output: Path) -> None:
    if config.model.lora is None:
        inner(model.model).save_pretrained(str(output / "model"))
        return
    lora.save(output, lora.tensors(model), {"r": config.model.lora.r, "alpha": config.model.lora.alpha})
