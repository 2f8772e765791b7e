"""The first steps of training against a plain torch loop: `transformers`, `peft`, AdamW, cosine, clipping.

The reference takes each sample by itself; here several are packed into a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import peft
import pytest
import torch
from reference import Reference, write_checkpoint
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
from transformers import get_linear_schedule_with_warmup as get_linear_schedule

from paddle_llava import LlavaForConditionalGeneration
from paddle_llava.checkpoints.adapter import Adapter, write_adapter
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.models.lora import LoRALinear, add_lora
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import build_optimizer, part_of, select_trainable, trainable
from paddle_llava.training.parallel import World
from paddle_llava.training.step import Stepper
from training_samples import IGNORED, Sample, loss, make_sample

pytestmark = pytest.mark.parity
STEPS = 20
MODES: dict[str, dict[str, Any]] = {
    "projector": {
        "freeze_include": ["*llama*", "*lm_head*"],
        "freeze_exclude": ["*llama.mm_projector*"],
        "learning_rate": 5e-3,
    },
    "lora": {
        "lora": True,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "learning_rate": 5e-3,
        "mm_projector_lr": 1e-3,
    },
    "full": {"learning_rate": 1e-3, "mm_projector_lr": 3e-3, "weight_decay": 0.1},
    "full and tower": {"learning_rate": 1e-3, "vision_tower_lr": 1e-4, "lr_scheduler_type": "linear"},
}


@dataclass(frozen=True)
class Case:
    folder: Path
    config: TrainingConfig
    model: LlavaForConditionalGeneration
    batches: list[list[list[Sample]]]  # of each step, rows of samples


@pytest.fixture(params=[False, True], ids=["v1.5", "v1.6"])
def anyres(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=MODES)
def case(request: pytest.FixtureRequest, anyres: bool, tmp_path: Path) -> Case:
    write_checkpoint(tmp_path / "base", anyres=anyres, seed=8)
    settings = {"model_name_or_path": "base", "dataset": {"train": [{}]}, "output_dir": "out", "warmup_ratio": 0.1}
    config = TrainingConfig.from_dict({**settings, **MODES[request.param]})
    paddle.seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    if config.lora:
        names = stored_names(model.config, "paddle")
        add_lora(model, names, config.lora_target_modules, config.lora_rank, config.lora_alpha, config.lora_dropout)
    select_trainable(model, model.config, config)
    random = np.random.default_rng(1)
    sizes = [(40, 90), (90, 40), (56, 56), (120, 100)]

    def row(*pictures: int) -> list[Sample]:
        counts = random.integers(2, 12, (len(pictures), 2))
        return [
            make_sample(model.config, random, *pair.tolist(), *([sizes[i]] if i >= 0 else []))
            for i, pair in zip(pictures, counts, strict=True)
        ]

    different = [[row(0, -1), row(1, 2)], [row(3)], [row(-1, 1, 0), row(2)], [row(-1)], [row(2, 3), row(-1, -1)]]
    return Case(tmp_path, config, model, [different[step % 5] for step in range(STEPS)])


def our_losses(case: Case) -> list[float]:
    model = case.model
    model.train()
    optimizer = build_optimizer(model, case.config, STEPS)
    stepper = Stepper(case.config, model, optimizer, "float32", World(), print)
    losses = []
    for rows in case.batches:
        targets = sum(int((sample.labels != IGNORED).sum()) for row in rows for sample in row)
        mean = loss(model, rows) / targets
        mean.backward()
        stepper.update()
        optimizer._learning_rate.step()
        losses.append(float(mean))
    return losses


def torch_model(case: Case) -> torch.nn.Module:
    """The reference, with the adapters that ours starts with; what learns in ours learns in it."""
    model = Reference(case.folder / "base").model
    if case.config.lora:
        adapter = Adapter(case.config.lora_rank, case.config.lora_alpha)
        for name, layer in case.model.named_sublayers():
            if isinstance(layer, LoRALinear):
                adapter.pairs[name] = (layer.lora_A.numpy(), layer.lora_B.numpy())
        adapter.whole = {n: p.numpy() for n, p in case.model.projector.named_parameters("projector")}
        write_adapter(case.folder / "adapter", adapter, case.model.config)
        model = peft.PeftModel.from_pretrained(model, case.folder / "adapter", is_trainable=True)
        return model.train()
    parts = {part_of(name) for name in trainable(case.model)}
    kept = {"vision_tower", "multi_modal_projector", "language_model", "lm_head", "image_newline"}
    learning = {{"projector": "multi_modal_projector"}.get(part, part) for part in parts} & kept
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in learning))
    return model.train()


def torch_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    groups = []
    for name, parameter in model.named_parameters():
        rate = config.learning_rate
        if "multi_modal_projector" in name:
            rate = config.mm_projector_lr or rate
        elif "vision_tower" in name:
            rate = config.vision_tower_lr or rate
        still = "norm" in name or "layrnorm" in name or name.endswith("bias")
        if parameter.requires_grad:
            groups.append({"params": [parameter], "lr": rate, "weight_decay": 0.0 if still else config.weight_decay})
    return torch.optim.AdamW(groups, eps=config.adam_epsilon)


def torch_losses(case: Case) -> list[float]:
    model = torch_model(case)
    optimizer = torch_optimizer(model, case.config)
    schedule: Callable[..., Any] = {"cosine": get_cosine_schedule_with_warmup, "linear": get_linear_schedule}[
        case.config.lr_scheduler_type
    ]
    rates = schedule(optimizer, 2, STEPS)
    losses = []
    for rows in case.batches:
        samples = [sample for row in rows for sample in row]
        targets = sum(int((sample.labels != IGNORED).sum()) for sample in samples)
        mean = 0.0
        for sample in samples:
            inputs = {"input_ids": torch.from_numpy(sample.input_ids)[None]}
            if sample.image_sizes:
                pixels = torch.from_numpy(sample.pixel_values)
                anyres = case.model.config.image_grid_pinpoints is not None
                inputs["pixel_values"] = pixels[None] if anyres else pixels
                inputs |= {"image_sizes": torch.tensor(sample.image_sizes)} if anyres else {}
            logits = model(**inputs).logits[0]
            labels = torch.from_numpy(sample.labels)
            part = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / targets
            if part.requires_grad:  # else no picture reached the projector, which alone learns
                part.backward()
            mean += part.item()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], case.config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        losses.append(mean)
    return losses


def test_the_first_losses(case: Case) -> None:
    expected = torch_losses(case)
    found = our_losses(case)
    apart = np.abs(np.array(found) / np.array(expected) - 1)
    assert apart.max() < 1e-4, apart
    assert expected[-5] < 0.9 * expected[0]  # of the same samples


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_is_torch_s(decay: float, tmp_path: Path) -> None:
    """On the same gradients, ten steps: rates of parts, decay, clipping and schedule."""
    write_checkpoint(tmp_path, anyres=True, seed=2)
    settings: dict[str, Any] = {"learning_rate": 1e-2, "mm_projector_lr": 1e-3, "vision_tower_lr": 1e-4}
    settings |= {"weight_decay": decay, "warmup_steps": 3, "lr_scheduler_type": "constant", "adam_beta2": 0.95}
    config = TrainingConfig.from_dict(
        {"model_name_or_path": "m", "dataset": {"train": [{}]}, "output_dir": "o", **settings}
    )
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    select_trainable(model, model.config, config)
    optimizer = build_optimizer(model, config, 10)
    stepper = Stepper(config, model, optimizer, "float32", World(), print)
    rates = {"projector": config.mm_projector_lr, "vision_tower": config.vision_tower_lr}
    copies, groups = {}, []
    for name, parameter in trainable(model).items():
        copies[name] = torch.nn.Parameter(torch.tensor(parameter.numpy()))
        still = name.endswith("bias") or "norm" in name
        rate = rates.get(part_of(name)) or config.learning_rate
        groups.append({"params": [copies[name]], "lr": rate, "weight_decay": 0.0 if still else decay})
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=config.adam_epsilon)
    schedule = get_constant_schedule_with_warmup(reference, 3)
    random = np.random.default_rng(0)
    for step in range(10):
        for name, parameter in trainable(model).items():
            gradient = random.standard_normal(parameter.shape, dtype=np.float32) * 10.0 ** -(step % 4)
            parameter.grad, copies[name].grad = paddle.to_tensor(gradient), torch.tensor(gradient)
        stepper.update()
        optimizer._learning_rate.step()
        torch.nn.utils.clip_grad_norm_(copies.values(), config.max_grad_norm)
        reference.step()
        schedule.step()
    for name, parameter in trainable(model).items():
        assert np.abs(parameter.numpy() - copies[name].detach().numpy()).max() < 2e-6, name
