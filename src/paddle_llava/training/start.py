"""From a configuration file to a running recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from paddle_llava.device import compute_dtype, select_device
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration, Progress
from paddle_llava.pretrained import find_pretrained
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.template_choice import template_for
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.parallel import World
from paddle_llava.training.recipe import train

Stage = Literal["pretrain", "finetune"]


def start(
    path: Path,
    stage: Stage,
    overrides: Mapping[str, str],
    say: Callable[[str], object],
    progress: Progress | None = None,
) -> Path:
    """Train as the JSON file at `path` says, with `overrides` of its keys; returns the folder of the result.

    The stages differ in their template: `pretrain` tells captions in `plain`, `finetune` conversations in the
    checkpoint's own template, unless `conv_mode` names one. Raises `LlavaError`.
    """
    config, notes = TrainingConfig.read(path, overrides)
    for note in notes:
        say(note)
    device = select_device(config.device)
    world = World.join()
    _check_supported(config, device, world)
    asked = "float16" if config.fp16 else "bfloat16" if config.bf16 else "float32"
    dtype, notice = compute_dtype(asked)
    if notice:
        say(notice)
    pretrained = find_pretrained(config.model_name_or_path)
    conv_mode = config.conv_mode or ("plain" if stage == "pretrain" else None)
    template, guessed = template_for(pretrained.raw, conv_mode, pretrained.folder.name)
    if guessed:
        say(guessed)
    # O1 keeps float32 parameters and casts for each product; a frozen base under LoRA needs no such care.
    held = dtype if config.lora or config.fp16_opt_level == "O2" else "float32"
    processor = LlavaProcessor.from_pretrained(pretrained.folder)
    model = LlavaForConditionalGeneration.from_pretrained(
        pretrained.folder, dtype=held, lora_path=None if config.lora else config.lora_path, progress=progress
    )
    quiet = (lambda _: None) if world.rank else say
    return train(config, model, processor, template, dtype=dtype, world=world, say=quiet)


def _check_supported(config: TrainingConfig, device: str, world: World) -> None:
    if config.sharding or config.tensor_parallel_degree > 1:
        raise LlavaError(
            "sharding and tensor_parallel_degree are not supported yet; several processes under "
            "paddle.distributed.launch train data parallel without them"
        )
