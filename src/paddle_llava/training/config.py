"""Training settings: one JSON file, strictly read.

The keys are those that PaddleMIX's LLaVA configurations use, so that such a file trains here as it is. A key that has
no meaning here is named in one line with the reason; an unknown one is an error with the nearest right key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.json_file import read_json

# Keys of such files that are read and change nothing, and why.
WITHOUT_EFFECT = {
    "use_flash_attention": "attention takes the fast path of the device by itself",
    "eval_accumulation_steps": "evaluation keeps no tensors between batches",
    "eval_with_do_generation": "generation is judged by `llava eval`",
    "skip_memory_metrics": "memory is always reported",
    "benchmark": "speed is always reported",
    "amp_master_grad": "gradients have the type of their parameters, float32 at fp16_opt_level O1",
    "version": "the template is what conv_mode names, or plain for pretrain and the checkpoint's own for finetune",
    "text_model_name_or_path": "the tokenizer comes with the model",
}


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run depends on; learning rates are those of AdamW's peak, lengths are in tokens."""

    model_name_or_path: str
    dataset: dict[str, list[dict[str, Any]]]
    output_dir: str

    vision_tower: str | None = None
    pretrain_mm_mlp_adapter: str | None = None
    mm_projector_type: str | None = None
    mm_vision_select_layer: int | None = None
    mm_vision_select_feature: str | None = None
    image_aspect_ratio: str | None = None

    freeze_include: list[str] = field(default_factory=list)
    freeze_exclude: list[str] = field(default_factory=list)
    vision_tower_lr: float | None = None

    lora: bool = False
    lora_path: str | None = None
    lora_rank: int = 128
    lora_alpha: float = 256.0
    lora_dropout: float = 0.05
    lora_target_modules: list[str] = field(default_factory=lambda: [r"llama\.layers\..*(q|k|v|o|gate|up|down)_proj.*"])

    conv_mode: str | None = None
    max_length: int = 2048
    mixtoken: bool = False
    group_by_modality_length: bool = False
    on_bad_sample: Literal["error", "skip"] = "error"
    dataloader_num_workers: int = 2

    per_device_train_batch_size: int = 1
    per_device_eval_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 1.0
    max_steps: int = -1

    learning_rate: float = 2e-5
    mm_projector_lr: float | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.0
    warmup_steps: int = 0

    do_train: bool = True
    do_eval: bool = False
    evaluation_strategy: Literal["no", "steps", "epoch"] = "no"
    eval_steps: int = 500
    load_best_model_at_end: bool = False
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    save_steps: int = 500
    save_total_limit: int | None = None
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None

    logging_steps: int = 1
    disable_tqdm: bool = False
    report_to: list[str] = field(default_factory=list)

    fp16: bool = False
    bf16: bool = False
    fp16_opt_level: Literal["O1", "O2"] = "O1"
    recompute: bool = False
    sharding: Literal["", "stage1", "stage2", "stage3"] = ""
    sharding_parallel_degree: int = -1
    tensor_parallel_degree: int = 1
    device: str | None = None
    seed: int = 42

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, str] | None = None) -> tuple[TrainingConfig, list[str]]:
        """The settings in the JSON file at `path`, and a line for each key without effect.

        `overrides` are values from the command line, as text. Raises `LlavaError` naming the file and the key.
        """
        raw = read_json(path, unique_keys=True)
        for key, text in (overrides or {}).items():
            raw[key] = _value_of(text, _HINTS.get(key))
        notes = [f"{key} has no effect here: {WITHOUT_EFFECT[key]}" for key in raw if key in WITHOUT_EFFECT]
        config = cls.from_dict({k: v for k, v in raw.items() if k not in WITHOUT_EFFECT}, where=str(path))
        if config.mixtoken and config.group_by_modality_length:
            notes.append("group_by_modality_length has no effect here: with mixtoken, sequences are full anyway")
        return config, notes

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, where: str = "config") -> TrainingConfig:
        """Settings from a dictionary; null means what leaving a key out means.

        Raises `LlavaError` for unknown keys, wrong types and values out of bounds.
        """
        for key in raw:
            if key not in _HINTS:
                raise LlavaError(f"{where}: unknown key {key[:80]!r}{did_you_mean(key, [*_HINTS, *WITHOUT_EFFECT])}")
        given = {key: value for key, value in raw.items() if value is not None}
        for f in fields(cls):
            if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
                raise LlavaError(f"{where}: {f.name} is missing")
        values = {key: _typed(value, _HINTS[key], f"{where}: {key}") for key, value in given.items()}
        _check_splits(values["dataset"], where)
        config = cls(**values)
        config._check(where)
        return config

    def _check(self, where: str) -> None:
        for keys, fits, said in _BOUNDS:
            for key in keys.split():
                value = getattr(self, key)
                if value is not None and not fits(value):
                    raise LlavaError(f"{where}: {key} must be {said}, found {value!r}")
        if self.fp16 and self.bf16:
            raise LlavaError(f"{where}: fp16 and bf16 exclude each other")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise LlavaError(f"{where}: num_train_epochs or max_steps must be greater than 0")
        for needed, split in ((self.do_train, "train"), (self.do_eval, "eval")):
            if needed and not self.dataset.get(split):
                raise LlavaError(f"{where}: do_{split} is set, but dataset.{split} names no data file")


def _has_home(path: str) -> bool:
    try:
        Path(path).expanduser()
    except (RuntimeError, ValueError):  # nobody of that name; what no name holds
        return False
    return True


_HINTS = get_type_hints(TrainingConfig)
MAX_RANK, MAX_EPOCHS = 2**16, 10**9  # far beyond what is of use, and what can be counted with
_REPORTS = {"visualdl", "tensorboard", "none"}
_BOUNDS: list[tuple[str, Callable[[Any], bool], str]] = [
    ("model_name_or_path output_dir", lambda text: text.strip() != "", "a name or a path"),
    (
        "output_dir resume_from_checkpoint lora_path pretrain_mm_mlp_adapter",
        _has_home,
        "a path, whose ~ stands for a home directory that there is",
    ),
    (
        "max_length per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps logging_steps "
        "save_steps eval_steps save_total_limit",
        lambda number: number > 0,
        "greater than 0",
    ),
    (
        "learning_rate mm_projector_lr vision_tower_lr lora_alpha adam_epsilon",
        lambda number: 0 < number < math.inf,
        "greater than 0",
    ),
    ("warmup_steps dataloader_num_workers seed", lambda number: number >= 0, "0 or more"),
    ("weight_decay max_grad_norm", lambda number: 0 <= number < math.inf, "0 or more"),
    ("lora_rank", lambda rank: 0 < rank <= MAX_RANK, f"greater than 0, and at most {MAX_RANK}"),
    ("num_train_epochs", lambda epochs: abs(epochs) <= MAX_EPOCHS, f"a number, at most {MAX_EPOCHS}"),
    ("warmup_ratio", lambda share: 0 <= share <= 1, "between 0 and 1"),
    ("lora_dropout adam_beta1 adam_beta2", lambda share: 0 <= share < 1, "at least 0 and less than 1"),
    ("sharding_parallel_degree tensor_parallel_degree", lambda n: n > 0 or n == -1, "greater than 0, or -1 for any"),
    ("mm_projector_type", {"mlp2x_gelu"}.__contains__, "mlp2x_gelu"),
    ("mm_vision_select_feature", {"patch", "cls_patch"}.__contains__, "patch or cls_patch"),
    ("image_aspect_ratio", {"square", "pad", "anyres"}.__contains__, "square, pad or anyres"),
    ("report_to", _REPORTS.issuperset, f"among {', '.join(sorted(_REPORTS))}"),
]


def file_and_overrides(arguments: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The configuration's file, and keys with their text from `--key value` or `--key=value`, in any order.

    Raises `LlavaError` for anything else.
    """
    file: Path | None = None
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        if file is None and not argument.startswith("-"):
            file = Path(argument)
        elif not flag.startswith("--") or (not equals and not rest):
            raise LlavaError(f"{flag}: settings are given as --key value, for example --learning_rate 2e-5")
        else:
            overrides[flag[2:].replace("-", "_")] = value if equals else rest.pop(0)
    if file is None:
        raise LlavaError("CONFIG is missing: give a JSON file, and settings as --key value like --learning_rate 2e-5")
    return file, overrides


def _value_of(text: str, hint: Any) -> Any:
    """What `text` from the command line means for a field of the type `hint`: JSON, unless text is wanted."""
    if text in ("null", "None"):
        return None
    kinds = _kinds(hint)
    if str in kinds or get_origin(hint) is Literal:
        return text
    if bool in kinds:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _kinds(hint: Any) -> list[Any]:
    """The types that a field's annotation allows, beside None."""
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return [option for option in options if option is not type(None)]


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the field's type; a string is a list of one, an integer a float, and nothing else is stretched."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            allowed = ", ".join(map(repr, get_args(hint)))
            raise LlavaError(f"{where} must be one of {allowed}, found {str(value)[:80]!r}")
        return value
    (kind,) = _kinds(hint)
    if kind == list[str]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        if isinstance(value, str):
            return [value]
        raise LlavaError(f"{where} must be a list of strings, found {str(value)[:80]!r}")
    if get_origin(kind) is dict:
        return value
    if type(value) is int and abs(value) >= 2**63:
        raise LlavaError(f"{where} is too large")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise LlavaError(f"{where} must be of type {kind.__name__}, found {str(value)[:80]!r}")
    return value


def _check_splits(dataset: Any, where: str) -> None:
    if not isinstance(dataset, dict):
        raise LlavaError(f'{where}: dataset must be an object such as {{"train": [{{"data_files": "train.json"}}]}}')
    for split, entries in dataset.items():
        if split not in ("train", "eval"):
            raise LlavaError(
                f"{where}: dataset has train and eval, not {split!r}{did_you_mean(split, ['train', 'eval'])}"
            )
        if not isinstance(entries, list):
            raise LlavaError(f"{where}: dataset.{split} must be a list of objects")
