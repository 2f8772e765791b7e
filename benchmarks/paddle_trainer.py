"""This project's side of a comparison of training steps: what a peer process runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava import LlavaForConditionalGeneration
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.data.collate import Batch, PreparedSample, collate
from paddle_llava.data.encoding import EncodedSample
from paddle_llava.models.lora import add_lora
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import build_optimizer, select_trainable
from paddle_llava.training.parallel import World
from paddle_llava.training.step import Stepper
from training_data import LEARNING_RATE, LORA_ALPHA, LORA_DROPOUT, LORA_RANK, Drawn


class PaddleTrainer:
    """A model that learns; `load` comes before `step`."""

    def load(self, folder: Path, mode: str, steps: int) -> None:
        """Prepare `steps` steps of `mode`: lora, or full."""
        config = TrainingConfig(
            model_name_or_path=str(folder),
            dataset={},
            output_dir="",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            lora=mode == "lora",
            lora_rank=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=LORA_DROPOUT,
        )
        model = LlavaForConditionalGeneration.from_pretrained(folder)
        if config.lora:
            names = stored_names(model.config, "paddle")
            add_lora(model, names, config.lora_target_modules, LORA_RANK, LORA_ALPHA, LORA_DROPOUT)
        select_trainable(model, model.config, config)
        model.train()
        optimizer = build_optimizer(model, config, steps)
        self.stepper = Stepper(config, model, optimizer, "float32", World(), print)
        self.taken = 0

    def step(self, samples: Sequence[Drawn]) -> dict[str, Any]:
        """One step on `samples`, packed into one row: its seconds, and its loss."""
        batch = _batch(samples)
        self.taken += 1
        start = time.perf_counter()
        learnt = self.stepper.step(self.taken, iter([batch]), lambda: False)
        assert learnt is not None
        return {"seconds": time.perf_counter() - start, "loss": learnt.loss}


def _batch(samples: Sequence[Drawn]) -> Batch:
    row = [_prepared(sample, number) for number, sample in enumerate(samples)]
    return collate([row], padding_id=0) | {"skipped": [], "state": ()}


def _prepared(drawn: Drawn, number: int) -> PreparedSample:
    length, targets = len(drawn.input_ids), int((drawn.labels >= 0).sum())
    sample = EncodedSample(
        str(number), drawn.input_ids, drawn.labels, (), (), (), targets, full_length=length, truncated=False
    )
    if drawn.pixel_values is None:
        return PreparedSample(sample, {})
    sizes = np.array([[336, 336]])
    return PreparedSample(sample, {"pixel_values": drawn.pixel_values[None], "image_sizes": sizes})
