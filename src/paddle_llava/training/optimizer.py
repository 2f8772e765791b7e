"""What is trained, at which rate, and how the rate goes."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import paddle
from paddle import nn

from paddle_llava.checkpoints.names import stored_names
from paddle_llava.config import LlavaConfig
from paddle_llava.errors import LlavaError
from paddle_llava.training.config import TrainingConfig

PARTS = ("vision_tower", "projector", "image_newline", "language_model", "lm_head")
# Parameters that some models lack (tied embeddings; v1.5): a pattern that names them is right all the same.
_OPTIONAL = ("lm_head.weight", "llama.image_newline")


def part_of(name: str) -> str:
    """The part of the model, one of `PARTS`, that the parameter `name` belongs to."""
    return name.partition(".")[0]


def select_trainable(model: nn.Layer, llava: LlavaConfig, config: TrainingConfig) -> list[str]:
    """Mark which parameters learn, by `stop_gradient`; gives a line for each pattern of `freeze_exclude` that has no
    effect, for what it matches is frozen for another reason.

    The vision tower learns only with a `vision_tower_lr`, and of it only what LLaVA reads. Patterns of `freeze_include`
    freeze, unless one of `freeze_exclude` matches too; they are shell patterns over the Paddle layout's names, such as
    `*llama.mm_projector*`. With `lora`, the base is frozen and its adapters and the projector learn. Raises
    `LlavaError` when a pattern matches nothing, or when nothing is left to learn.
    """
    paddle_names = stored_names(llava, "paddle")
    for key in ("freeze_include", "freeze_exclude"):
        for pattern in getattr(config, key):
            if not any(fnmatchcase(name, pattern) for name in (*paddle_names.values(), *_OPTIONAL)):
                raise LlavaError(
                    f"{key}: {pattern!r} matches no parameter; names are like llama.layers.0.mlp.up_proj.weight"
                )
    if config.lora and config.vision_tower_lr is not None:
        raise LlavaError("vision_tower_lr: with lora the vision tower stays as it is; leave one of the two out")
    learns: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        known = paddle_names[name.replace(".base.", ".")]
        if part_of(name) == "vision_tower":
            frozen = config.vision_tower_lr is None or _is_unused(name, llava)
        else:
            frozen = config.lora and part_of(name) != "projector"
        frozen |= _matches(known, config.freeze_include) and not _matches(known, config.freeze_exclude)
        parameter.stop_gradient = frozen
        learns[known] = not frozen
    notes = [
        f"freeze_exclude: {pattern!r} has no effect, for {_why_frozen(config)}"
        for pattern in config.freeze_exclude
        if (matched := [name for name in learns if fnmatchcase(name, pattern)])
        and not any(learns[name] for name in matched)
    ]
    if not trainable(model):
        advice = notes[0] if notes else "add a pattern to freeze_exclude"
        raise LlavaError(f"freeze_include leaves no parameter to learn; {advice}")
    return notes


def _why_frozen(config: TrainingConfig) -> str:
    """Why a parameter that `freeze_exclude` spares may stay frozen."""
    if config.lora:
        return "with lora only its adapters and the projector learn"
    if config.vision_tower_lr is None:
        return "the vision tower learns only with a vision_tower_lr"
    return "LLaVA does not read that part of the vision tower"


def _is_unused(name: str, llava: LlavaConfig) -> bool:
    """Whether the parameter `name` of the vision tower comes after the layer that LLaVA reads."""
    if name.startswith("vision_tower.post_layernorm."):
        return True
    used = llava.vision_feature_layer
    used = used if used >= 0 else llava.vision.num_hidden_layers + 1 + used
    return name.startswith("vision_tower.layers.") and int(name.split(".")[2]) >= used


def trainable(model: nn.Layer) -> dict[str, paddle.Tensor]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def learning_rate_factor(step: int, total: int, warmup: int, kind: str) -> float:
    """The share of the peak rate at optimizer step `step` (from 0) of `total`: linear warm-up, then `kind`."""
    if step < warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(total - warmup, 1)
    return max(0.0, 1.0 - done) if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(model: nn.Layer, config: TrainingConfig, total_steps: int) -> paddle.optimizer.AdamW:
    """AdamW over the parameters that learn, with its schedule; the step clips, which knows the norm already.

    The projector learns at `mm_projector_lr` and the vision tower at `vision_tower_lr` where given. Biases and norms
    do not decay. 16-bit parameters keep float32 masters.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    schedule = paddle.optimizer.lr.LambdaDecay(
        config.learning_rate, lambda step: learning_rate_factor(step, total_steps, warmup, config.lr_scheduler_type)
    )
    rates = {"vision_tower": config.vision_tower_lr, "projector": config.mm_projector_lr}
    parameters, decaying = trainable(model), set()
    for name, parameter in parameters.items():
        rate = rates.get(part_of(name))
        parameter.optimize_attr["learning_rate"] = 1.0 if rate is None else rate / config.learning_rate
        if "norm" not in name and not name.endswith("bias"):
            decaying.add(parameter.name)
    return paddle.optimizer.AdamW(
        learning_rate=schedule,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        epsilon=config.adam_epsilon,
        parameters=list(parameters.values()),
        weight_decay=config.weight_decay,
        apply_decay_param_fun=decaying.__contains__,
        multi_precision=True,
    )


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
