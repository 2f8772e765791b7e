"""The training loop, in plain sight.

One recipe pretrains the projector and fine-tunes, whole or with LoRA; what differs is what learns. A step's loss is the
mean over all target tokens of all its micro-batches on all devices, so that accumulating or adding devices changes no
gradient. Every random number of a step comes from the seed and the step's number: a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddle_llava.checkpoints.adapter import Adapter, read_adapter, write_adapter
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.data.batches import BatchSettings
from paddle_llava.data.loader import Batches, Position
from paddle_llava.data.mixture import Mixture
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.models.lora import LoRALinear, add_lora
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import Template
from paddle_llava.training.checkpoint import TrainerState, checkpoint_folders, load_checkpoint, save_checkpoint
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.log import TrainingLog
from paddle_llava.training.optimizer import build_optimizer, select_trainable, trainable
from paddle_llava.training.parallel import World
from paddle_llava.training.plan import make_plan

Batch = Mapping[str, Any]
Say = Callable[[str], object]


def train(
    config: TrainingConfig,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    template: Template,
    *,
    dtype: str = "float32",
    world: World = World(),  # noqa: B008 (frozen)
    say: Say = print,
) -> Path:
    """Train `model` as `config` says; returns the folder of the result.

    The result is a whole `hf` folder, or with `lora` an adapter in PEFT's layout. Checkpoints go to
    `output_dir/checkpoint-STEP`; the newest one there is continued unless `overwrite_output_dir`. SIGTERM saves one and
    stops. Conversations are told in `template` unless their data file names another. `dtype` is what products are
    computed in. Raises `LlavaError` for data that cannot be used, and for a loss that is no number, naming the records.
    """
    output_dir = Path(config.output_dir).expanduser()
    if config.lora:
        names = stored_names(model.config, "paddle")
        add_lora(model, names, config.lora_target_modules, config.lora_rank, config.lora_alpha, config.lora_dropout)
    select_trainable(model, model.config, config)
    if config.lora and config.lora_path:
        _take_adapter(model, config, Path(config.lora_path).expanduser())
    model.language_model.recompute = config.recompute
    model.train()

    batches = _batches(config, "train", processor, template, world, epochs=None)
    eval_batches = _batches(config, "eval", processor, template, world, epochs=1) if config.do_eval else None
    steps_an_epoch = max(1, batches.len_estimate() // config.gradient_accumulation_steps)
    total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps_an_epoch)
    optimizer = build_optimizer(model, config, total)
    scaler = paddle.amp.GradScaler(enable=dtype == "float16", init_loss_scaling=2.0**15)
    for line in make_plan(model, config, total, world.size).lines():
        say(line)
    state = _resume(config, output_dir, model, optimizer, say)
    batches.start = Position(*state.position)
    schedule = optimizer._learning_rate
    schedule.step(state.step)
    parameters = list(trainable(model).values())

    live = world.rank == 0 and not config.disable_tqdm
    with (
        closing(iter(batches)) as stream,
        TrainingLog(output_dir, total, state.step, every=config.logging_steps, live=live, quiet=world.rank > 0) as log,
        _stop_requests() as stop_requested,
    ):
        while state.step < total:
            paddle.seed(_step_seed(config.seed, state.step, world.rank))
            micro_batches = [next(stream) for _ in range(config.gradient_accumulation_steps)]
            targets = world.sum(sum(batch["num_targets"] for batch in micro_batches))
            loss = 0.0
            for batch in micro_batches:
                with _autocast(dtype, config.fp16_opt_level):
                    micro_loss = _loss(model, batch) / targets
                value = float(micro_loss)
                if not math.isfinite(value):
                    if config.on_bad_sample == "error":
                        raise LlavaError(f"step {state.step + 1}: the loss is {value} for {_records(batch)}")
                    state.skipped += 1
                    say(f"step {state.step + 1}: skipped {_records(batch)}, whose loss is {value}")
                    continue
                scaler.scale(micro_loss).backward()
                loss += value
            world.sum_gradients(parameters)
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
            learning_rate = optimizer.get_lr()
            schedule.step()

            state.step += 1
            previous_epoch = state.position[0] if state.position else 0
            state.position = list(micro_batches[-1]["state"])
            for reason in (reason for batch in micro_batches for reason in batch["skipped"]):
                state.skipped += 1
                say(f"skipped {reason}")
            log.step(state.step, world.sum(loss), learning_rate, _counts(micro_batches))
            epoch_ended = state.position[0] != previous_epoch
            if eval_batches is not None and _due(
                config.evaluation_strategy, config.eval_steps, state.step, epoch_ended
            ):
                log.write({"step": state.step, "eval_loss": evaluate(model, eval_batches, dtype, config)})
            stopping = stop_requested()
            if stopping or _due(config.save_strategy, config.save_steps, state.step, epoch_ended):
                _save(config, output_dir, model, optimizer, state, world)
            if stopping:
                say(f"stopped by SIGTERM after step {state.step}; run the same command again to go on")
                return output_dir
    return _finish(config, output_dir, model, processor, world)


@paddle.no_grad()
def evaluate(model: LlavaForConditionalGeneration, batches: Batches, dtype: str, config: TrainingConfig) -> float:
    """The mean loss over all targets of one pass through `batches`."""
    model.eval()
    loss, targets = 0.0, 0
    for batch in batches:
        with _autocast(dtype, config.fp16_opt_level):
            loss += float(_loss(model, batch))
        targets += batch["num_targets"]
    model.train()
    return loss / max(targets, 1)


def _loss(model: LlavaForConditionalGeneration, batch: Batch) -> paddle.Tensor:
    pixels = batch.get("pixel_values")
    return model.loss(
        paddle.to_tensor(batch["input_ids"]),
        paddle.to_tensor(batch["labels"]),
        paddle.to_tensor(batch["position_ids"]),
        _lengths(batch["segment_ids"]),
        None if pixels is None else paddle.to_tensor(pixels),
        None if pixels is None else batch["image_sizes"].tolist(),
    )


def _lengths(segment_ids: np.ndarray) -> list[list[int]]:
    """The lengths of the samples of each row, in order; padding, segment 0, is the last."""
    lengths = []
    for row in segment_ids:
        starts = np.flatnonzero(np.diff(row)) + 1
        lengths.append(np.diff(np.concatenate([[0], starts, [len(row)]])).tolist())
    return lengths


def _batches(
    config: TrainingConfig, split: str, processor: LlavaProcessor, template: Template, world: World, epochs: int | None
) -> Batches:
    training = split == "train"
    settings = BatchSettings(
        batch_size=config.per_device_train_batch_size if training else config.per_device_eval_batch_size,
        max_length=config.max_length,
        seed=config.seed,
        packing=config.mixtoken,
        group_by_modality_length=config.group_by_modality_length,
        shuffle=training,
        on_bad_sample=config.on_bad_sample,
    )
    mixture = Mixture.from_entries(config.dataset.get(split), template, where=f"dataset.{split}")
    return Batches(
        mixture,
        processor,
        settings,
        epochs=epochs,
        rank=world.rank,
        world_size=world.size,
        workers=config.dataloader_num_workers,
    )


def _resume(
    config: TrainingConfig,
    output_dir: Path,
    model: LlavaForConditionalGeneration,
    optimizer: paddle.optimizer.Optimizer,
    say: Say,
) -> TrainerState:
    fixed = _fixed(config)
    if config.resume_from_checkpoint is not None:
        folder = Path(config.resume_from_checkpoint).expanduser()
    else:
        found = checkpoint_folders(output_dir)
        if not found or config.overwrite_output_dir:
            return TrainerState(fixed=fixed)
        folder = found[-1]
    state = load_checkpoint(folder, model, optimizer, fixed)
    say(f"going on from {folder}, after step {state.step}")
    return state


def _fixed(config: TrainingConfig) -> dict[str, Any]:
    """The settings that a resumed run must share for its steps to be those of an unbroken one."""
    keys = ("seed", "max_length", "mixtoken", "group_by_modality_length", "per_device_train_batch_size", "lora")
    return {key: getattr(config, key) for key in (*keys, "gradient_accumulation_steps", "lora_rank")}


def _due(strategy: str, every: int, step: int, epoch_ended: bool) -> bool:
    return epoch_ended if strategy == "epoch" else strategy == "steps" and step % every == 0


def _save(
    config: TrainingConfig,
    output_dir: Path,
    model: LlavaForConditionalGeneration,
    optimizer: paddle.optimizer.Optimizer,
    state: TrainerState,
    world: World,
) -> None:
    """Write a checkpoint from the first process; all hold the same parameters and optimizer state."""
    if world.rank == 0:
        also = (lambda folder: write_adapter(folder, _adapter(model, config), model.config)) if config.lora else None
        save_checkpoint(output_dir, model, optimizer, state, keep=config.save_total_limit, also=also)


def _finish(
    config: TrainingConfig,
    output_dir: Path,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    world: World,
) -> Path:
    if world.rank == 0 and config.lora:
        write_adapter(output_dir, _adapter(model, config), model.config)
    elif world.rank == 0:
        processor.save_pretrained(output_dir)
        model.save_pretrained(output_dir)
    return output_dir


def _adapter(model: LlavaForConditionalGeneration, config: TrainingConfig) -> Adapter:
    pairs = {
        name: (layer.lora_A.numpy(), layer.lora_B.numpy())
        for name, layer in model.named_sublayers()
        if isinstance(layer, LoRALinear)
    }
    whole = {
        name: parameter.astype("float32").numpy()
        for name, parameter in trainable(model).items()
        if ".lora_" not in name
    }
    return Adapter(config.lora_rank, config.lora_alpha, config.lora_dropout, config.model_name_or_path, pairs, whole)


def _take_adapter(model: LlavaForConditionalGeneration, config: TrainingConfig, folder: Path) -> None:
    """Start from the adapter in `folder` rather than from the base model."""
    adapter = read_adapter(folder, model.config)
    layers = {name: layer for name, layer in model.named_sublayers() if isinstance(layer, LoRALinear)}
    if adapter.pairs.keys() != layers.keys() or adapter.rank != config.lora_rank or adapter.alpha != config.lora_alpha:
        raise LlavaError(
            f"{folder}: an adapter of rank {adapter.rank}, alpha {adapter.alpha:g} and {len(adapter.pairs)} layers "
            f"does not fit lora_rank {config.lora_rank}, lora_alpha {config.lora_alpha:g} and {len(layers)} layers"
        )
    for name, layer in layers.items():
        layer.lora_A.set_value(adapter.pairs[name][0])
        layer.lora_B.set_value(adapter.pairs[name][1])
    parameters = trainable(model)
    for name, array in adapter.whole.items():
        parameters[name].set_value(paddle.to_tensor(array).astype(parameters[name].dtype))


def _autocast(dtype: str, level: str) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == "float32" else paddle.amp.auto_cast(dtype=dtype, level=level)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _records(batch: Batch) -> str:
    return ", ".join(name for row in batch["records"] for name in row)


def _counts(batches: Sequence[Batch]) -> dict[str, int]:
    return {
        "tokens": sum(batch["input_ids"].size for batch in batches),
        "useful": sum(batch["num_tokens"] for batch in batches),
        "targets": sum(batch["num_targets"] for batch in batches),
    }


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come meanwhile, instead of its ending the process in the middle of a step."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)
