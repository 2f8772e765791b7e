"""What a run starts from: the parts of the model that learn, the batches, and how many steps there are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import paddle

from paddle_llava.checkpoints.names import stored_names
from paddle_llava.data.batches import BatchSettings
from paddle_llava.data.loader import Batches
from paddle_llava.data.mixture import Mixture
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.models.lora import add_lora
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import Template
from paddle_llava.training.checkpoint import TrainerState
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import select_trainable
from paddle_llava.training.parallel import World
from paddle_llava.training.result import take_adapter

Split = Literal["train", "eval"]


def prepare(model: LlavaForConditionalGeneration, config: TrainingConfig) -> list[str]:
    """Make `model` ready to learn what `config` says; gives a line for each setting that has no effect on it.

    Raises `LlavaError` for what cannot go together.
    """
    if config.load_best_model_at_end and config.evaluation_strategy == "no":
        raise LlavaError("load_best_model_at_end needs an evaluation_strategy, steps or epoch, to know the best")
    paddle.seed(config.seed)
    if config.lora:
        names = stored_names(model.config, "paddle")
        add_lora(model, names, config.lora_target_modules, config.lora_rank, config.lora_alpha, config.lora_dropout)
    notes = select_trainable(model, model.config, config)
    if config.lora and config.lora_path:
        take_adapter(model, config, Path(config.lora_path).expanduser())
    model.language_model.recompute = config.recompute
    model.train()
    return notes


def evaluates(config: TrainingConfig) -> bool:
    """Whether the run looks at the data of `eval`."""
    return config.do_eval or config.evaluation_strategy != "no"


def make_batches(
    split: Split, config: TrainingConfig, processor: LlavaProcessor, template: Template, world: World
) -> Batches:
    """This process's batches of `split`: without end to train on, once through to evaluate."""
    training = split == "train"
    settings = BatchSettings(
        batch_size=config.per_device_train_batch_size if training else config.per_device_eval_batch_size,
        max_length=config.max_length,
        seed=config.seed,
        packing=config.mixtoken,
        group_by_modality_length=config.group_by_modality_length,
        shuffle=training,
        on_bad_sample=config.on_bad_sample,
        replaced=training,
    )
    return Batches(
        Mixture.from_entries(config.dataset.get(split), template, where=f"dataset.{split}"),
        processor,
        settings,
        epochs=None if training else 1,
        # Each replica sees all of the evaluation's batches and takes its own: none is left out for being odd.
        rank=world.replica if training else 0,
        world_size=world.replicas if training else 1,
        workers=config.dataloader_num_workers,
        ahead=config.gradient_accumulation_steps if training else 0,  # all of a step's are wanted before its first
    )


def total_steps(config: TrainingConfig, batches: Batches, state: TrainerState) -> int:
    """Optimizer steps of a run that goes on from `state`; the last one of a last epoch that does not fill it begins the
    next epoch.

    Where other numbers of processes have learnt before, what is left of the epochs is shared out among those of now.
    """
    if config.max_steps > 0:
        return config.max_steps
    steps = config.num_train_epochs * batches.len_estimate() / config.gradient_accumulation_steps
    a_step = batches_a_step(config, batches.world_size)
    if was_alike(state, a_step):
        return max(1, math.ceil(steps))
    return state.step + max(0, math.ceil(steps - state.batches / a_step))


def batches_a_step(config: TrainingConfig, replicas: int) -> int:
    """Of all replicas together."""
    return config.gradient_accumulation_steps * replicas


def was_alike(state: TrainerState, a_step: int) -> bool:
    """Whether all steps before `state` were of `a_step` batches, as far as is known."""
    return state.batches in (0, state.step * a_step)
