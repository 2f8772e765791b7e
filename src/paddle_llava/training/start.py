"""From a configuration file to a running recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paddle_llava import hub
from paddle_llava.console import importing_paddle, progress_bar
from paddle_llava.device import compute_dtype, select_device
from paddle_llava.errors import LlavaError
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.template_choice import template_for
from paddle_llava.training.assembly import find_assembly
from paddle_llava.training.config import TrainingConfig

if TYPE_CHECKING:
    from paddle_llava.llava import Progress
    from paddle_llava.training.parallel import World

Stage = Literal["pretrain", "finetune"]


def start(
    path: Path,
    stage: Stage,
    overrides: Mapping[str, str],
    say: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train as the JSON file at `path` says, with `overrides` of its keys; returns the folder of the result.

    The stages differ in their template: `pretrain` tells captions in `plain`, `finetune` conversations in the
    checkpoint's own template, unless `conv_mode` names one. Either may start from a text model and a vision tower that
    have never met (`paddle_llava.training.assembly`). `say` is told what a person should know (default: on
    stderr). Paddle is imported only once the settings are read, for some devices want theirs to come before. Raises
    `LlavaError`.
    """
    config, notes = TrainingConfig.read(path, overrides)
    with importing_paddle():
        device = select_device(config.device)
        from paddle_llava.llava import LlavaForConditionalGeneration
        from paddle_llava.training.log import tell
        from paddle_llava.training.parallel import World
        from paddle_llava.training.recipe import train
    say = say or tell
    asked = "float16" if config.fp16 else "bfloat16" if config.bf16 else "float32"
    dtype, notice = compute_dtype(asked)
    check_sharding(config, device, dtype)
    world = World.join(max(config.tensor_parallel_degree, 1), in_step=config.sharding in ("stage2", "stage3"))
    if world.rank:
        say = _silent
    for note in notes:
        say(note)
    _check_degree(config, world)
    if notice:
        say(notice)
    # O1 keeps float32 parameters and casts for each product; a frozen base under LoRA needs no such care.
    held = dtype if config.lora or config.fp16_opt_level == "O2" else "float32"
    folder = hub.local_folder(config.model_name_or_path, text_only=True)
    _check_output(config, folder)
    assembly = find_assembly(config, folder)
    conv_mode = config.conv_mode or ("plain" if stage == "pretrain" else None)
    if assembly is not None:
        say(assembly.said())
        processor = assembly.processor(template_for(assembly.raw, conv_mode)[0])
    else:
        processor = LlavaProcessor.from_pretrained(folder, conv_mode=conv_mode)
    with progress_bar("loading the model") as bar:
        if assembly is not None:
            model = assembly.load(held, progress or bar)
        else:
            model = LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=held, lora_path=None if config.lora else config.lora_path, progress=progress or bar
            )
    return train(config, model, processor, processor.template, dtype=dtype, world=world, say=say)


def _silent(_: str) -> None:
    """For the processes beside the first."""


def check_sharding(config: TrainingConfig, device: str, dtype: str) -> None:
    """Raise `LlavaError` for a `sharding` that cannot be had on `device`, with products in `dtype`, or not with the
    other settings."""
    if not config.sharding:
        return
    if config.sharding == "stage1":
        if dtype == "float16":  # also in the place of the bf16 that an older GPU does not have
            raise LlavaError('sharding: "stage1" does not go with float16\'s loss scaling; use bf16, or "stage2"')
        return
    if device == "cpu":
        raise LlavaError(
            f'sharding: {config.sharding} cannot run on a CPU, for Paddle has it for GPUs and NPUs only; "stage1" '
            "shares the optimizer's state out, and recompute and lora save memory too"
        )
    if config.load_best_model_at_end:
        raise LlavaError(f"load_best_model_at_end does not go with sharding: {config.sharding}; use stage1")
    if config.sharding == "stage3" and (config.do_eval or config.evaluation_strategy != "no"):
        raise LlavaError("sharding: stage3 cannot evaluate during the training; do so with its result afterwards")


def _check_output(config: TrainingConfig, folder: Path) -> None:
    """Raise `LlavaError` where the result would take the place of the model in `folder` that it is trained from."""
    output_dir = Path(config.output_dir).expanduser()
    if config.do_train and not config.lora and output_dir.resolve() == folder.resolve():
        raise LlavaError(f"output_dir: {output_dir} holds the model that this run starts from; give another folder")


def _check_degree(config: TrainingConfig, world: World) -> None:
    if config.sharding and config.sharding_parallel_degree not in (-1, world.replicas):
        part = f" of {world.tensor_parallel} processes each" if world.tensor_parallel > 1 else ""
        raise LlavaError(
            f"sharding_parallel_degree is {config.sharding_parallel_degree}, but this run has {world.replicas} "
            f"replicas of the model{part}; -1 means all of them"
        )
