"""Small runs of `llava finetune`: records, settings, and the run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from paddle_llava.training import report
from paddle_llava.training.start import start

WORDS = ["lake", "trees", "pavilion", "boats", "water", "bridge", "people", "bus", "street", "sky", "red", "blue"]


def write_records(folder: Path, count: int, *, pictures: bool = True, name: str = "train.json") -> Path:
    """`count` conversations of different lengths; every other one is about a picture."""
    random = np.random.default_rng(7)
    records: list[dict[str, Any]] = []
    for number in range(count):
        answer = " ".join(random.choice(WORDS, int(random.integers(2, 8))))
        record: dict[str, Any] = {"conversations": [[f"What is {number}?", answer]]}
        if pictures and number % 2:
            size = tuple(map(int, random.integers(30, 90, 2)))
            Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
            record["image"] = f"{number}.png"
        records.append(record)
    path = folder / name
    path.write_text(json.dumps(records))
    return path


def write_settings(folder: Path, checkpoint: Path, data: Path, **changes: Any) -> Path:
    """A configuration file in `folder`: no workers, a constant rate, result in `folder/out`."""
    settings = {
        "model_name_or_path": str(checkpoint),
        "dataset": {"train": [{"data_files": str(data)}], "eval": [{"data_files": str(data)}]},
        "output_dir": str(folder / "out"),
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_length": 512,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    return path


class Runner:
    """Runs in this process, all of one checkpoint and one file of records unless told otherwise."""

    def __init__(self, folder: Path, checkpoint: Path, data: Path) -> None:
        self.folder, self.checkpoint, self.data = folder, checkpoint, data
        self.said: list[str] = []

    def __call__(self, name: str, *, data: Path | None = None, **changes: Any) -> Path:
        path = write_settings(self.folder / name, self.checkpoint, data or self.data, **changes)
        self.said.clear()
        with patch.object(report, "ANSWER_TOKENS", 12):  # the demonstration's model rarely comes to an end
            return start(path, "finetune", {}, self.said.append)

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)


def weights(folder: Path) -> bytes:
    """The bytes of the result, whole model or adapter."""
    whole = folder / "model.safetensors"
    return (whole if whole.exists() else folder / "adapter_model.safetensors").read_bytes()


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log(folder) if "loss" in line]


def checkpoints(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in `folder`."""
    names = [path.parent.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*/trainer_state.json")]
    return sorted(int(name) for name in names if name.isdigit())
