"""`transformers` and `peft` on torch, as the other side of a comparison of training steps: what a peer process runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration, logging

from training_data import IGNORED, LEARNING_RATE, LORA_ALPHA, LORA_DROPOUT, LORA_RANK, Drawn

logging.disable_progress_bar()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class TransformersTrainer:
    """A model that learns; `load` comes before `step`."""

    def load(self, folder: Path, mode: str, steps: int) -> None:
        """Prepare for any number of steps of `mode`: lora, or full."""
        model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.model.vision_tower.requires_grad_(False)
        if mode == "lora":
            decoder = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
            config = LoraConfig(
                r=LORA_RANK,
                lora_alpha=LORA_ALPHA,
                lora_dropout=LORA_DROPOUT,
                target_modules=decoder,
                modules_to_save=["multi_modal_projector"],
            )
            model = get_peft_model(model, config)
        self.model = model.train()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(self, samples: Sequence[Drawn]) -> dict[str, Any]:
        """One step on `samples`, padded to the longest: its seconds, and its loss."""
        batch = _batch(samples)
        start = time.perf_counter()
        loss = self.model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = float(loss.detach())
        return {"seconds": time.perf_counter() - start, "loss": value}


def _batch(samples: Sequence[Drawn]) -> dict[str, torch.Tensor]:
    pictures = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    batch = {
        "input_ids": _padded([sample.input_ids for sample in samples], 0),
        "labels": _padded([sample.labels for sample in samples], IGNORED),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
    }
    return batch | ({"pixel_values": torch.from_numpy(np.stack(pictures))} if pictures else {})


def _padded(rows: Sequence[np.ndarray], fill: int) -> torch.Tensor:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=fill)
