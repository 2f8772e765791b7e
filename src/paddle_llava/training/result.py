"""What a run leaves in its `output_dir` besides checkpoints: the trained model or adapter, and that it is complete."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import paddle

from paddle_llava.checkpoints.adapter import Adapter, read_adapter, write_adapter
from paddle_llava.checkpoints.names import transformers_names
from paddle_llava.checkpoints.write import check_target
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.models.lora import LoRALinear
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.template_choice import DEFAULT, is_built_in, recorded_name
from paddle_llava.processing.templates import ALIASES, Template
from paddle_llava.training.checkpoint import STATE, checkpoint_folders
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import trainable

FILE = "training_result.json"
BEST = "best"


def finished_steps(output_dir: Path) -> int:
    """The steps of the run that was finished in `output_dir`, 0 without one."""
    try:
        steps = json.loads((output_dir / FILE).read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return steps if type(steps) is int else 0


def clear_result(output_dir: Path, *, checkpoints: bool) -> int:
    """Forget that a run was finished here, and with `checkpoints` remove what it could go on from, the latest last;
    returns how many these were."""
    (output_dir / FILE).unlink(missing_ok=True)
    found = [*checkpoint_folders(output_dir / BEST), *checkpoint_folders(output_dir)] if checkpoints else []
    for folder in found:
        (folder / STATE).unlink(missing_ok=True)  # half a checkpoint must not look like one
        shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def check_result(
    output_dir: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor, config: TrainingConfig
) -> None:
    """Raise `LlavaError` for a result that `write_result` could not write, while nothing has been learnt yet."""
    try:
        if config.lora:
            transformers_names(model.config)
        else:
            check_target(output_dir, model.config, "hf")
            processor.tokenizer_of("hf")
    except LlavaError as error:
        raise LlavaError(f"the result of training {config.model_name_or_path} could not be written: {error}") from None


def write_result(
    output_dir: Path,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    template: Template,
    config: TrainingConfig,
    steps: int,
) -> None:
    """Write the whole model in the `hf` layout, or the adapter in PEFT's, and last that it is complete.

    `template` is the one that it was trained in, which the model's `config.json` records. Raises `LlavaError` when the
    disk is full, or the folder cannot be written to.
    """
    try:
        if config.lora:
            write_adapter(output_dir, adapter_of(model, config), model.config)
        else:
            processor.save_pretrained(output_dir)
            model.config = replace(model.config, conv_mode=recorded_name(template, model.config.conv_mode))
            model.save_pretrained(output_dir)
        (output_dir / FILE).write_text(json.dumps({"steps": steps}) + "\n", encoding="utf-8")
    except OSError as error:
        raise LlavaError(
            f"{output_dir}: the result cannot be written ({error.strerror or error}); mend that and run the same "
            "command again, which goes on from the newest checkpoint"
        ) from None


def template_to_name(template: Template, own: str | None, *, lora: bool) -> str | None:
    """A line for a person who has to name the `template` of the training to chat with its result, for no file does.

    `own` is the name of the base model's, None for the default.
    """
    if not template.keeps_question:
        return None
    if not is_built_in(template):
        return (
            f"the training was told in a template of your own, {template.name!r}, which the result does not hold: chat "
            "with it needs --conv-mode FILE"
        )
    base = ALIASES.get(own, own) if own else DEFAULT
    if lora and template.name != base:
        return (
            f"the adapter was trained in the template {template.name}, but its base model's own is {base}: chat with "
            f"it needs --conv-mode {template.name}"
        )
    return None


def adapter_of(model: LlavaForConditionalGeneration, config: TrainingConfig) -> Adapter:
    """What was learnt beside the frozen base."""
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


def take_adapter(model: LlavaForConditionalGeneration, config: TrainingConfig, folder: Path) -> None:
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
        if name not in parameters:
            raise LlavaError(f"{folder}: holds {name}, which does not learn in this run; see freeze_include")
        parameters[name].set_value(paddle.to_tensor(array).astype(parameters[name].dtype))
