"""A name or a folder -> configuration, preprocessing and weights, with the separate vision tower where there is one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddle_llava import hub
from paddle_llava.checkpoints.folder import weight_files
from paddle_llava.checkpoints.read import Checkpoint, open_checkpoint
from paddle_llava.config import LlavaConfig, separate_tower
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json
from paddle_llava.processing.images import ImageProcessor
from paddle_llava.processing.template_choice import own_name

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint on this machine: its `folder`, its `config.json` as it stands (`raw`) and as we read it.

    `config.image_aspect_ratio` is what `image_processor` does, also where another file than `config.json` says it, and
    `config.conv_mode` the name of its own template, also where that has to be guessed.
    """

    folder: Path
    raw: dict[str, Any]
    config: LlavaConfig
    image_processor: ImageProcessor

    def open_weights(self) -> Checkpoint:
        """The weights, checked for completeness against the configuration before any is read.

        A checkpoint without a vision tower (v1.5 originals) takes the one that its configuration names.
        """
        return open_checkpoint(self.folder, self.config, tower=self._tower)

    def files(self, lora_path: str | None = None) -> list[Path]:
        """All that a model is made of: settings, tokenizer, weights or OpenVINO graphs, separate tower, adapter."""
        files = [path for name in hub.CHECKPOINT_FILES if (path := self.folder / name).is_file()]
        if graphs := sorted(self.folder.glob("openvino_*")):
            return files + graphs
        files += weight_files(self.folder)
        with self.open_weights() as checkpoint:
            if not checkpoint.carries_vision_tower and self.config.vision_tower_name:
                files += weight_files(hub.tower_folder(self.config.vision_tower_name))
        if lora_path is not None:
            files += sorted(path for path in Path(lora_path).expanduser().glob("adapter_*") if path.is_file())
        return files

    def _tower(self) -> Path:
        name = self.config.vision_tower_name
        if name is None:
            raise LlavaError(f"{self.folder}: the weights hold no vision tower and config.json names none")
        return hub.tower_folder(name)


def find_pretrained(name_or_path: str | Path, *, weights: bool = True) -> Pretrained:
    """The checkpoint of that name, downloaded if it is not in the cache, or in that folder.

    Without `weights` only what stands beside them is downloaded. Raises `LlavaError` when it cannot be had or is no
    LLaVA.
    """
    folder = hub.local_folder(name_or_path, weights=weights)
    path = folder / "config.json"
    if not path.is_file():
        raise LlavaError(f"{folder}: this folder has a processor but no config.json, so it is not a checkpoint")
    raw = read_json(path)
    tower = separate_tower(raw)
    beside = hub.tower_folder(tower, weights=weights) if tower else None
    vision = read_json(beside / "config.json") if beside else None
    config = LlavaConfig.from_dict(raw, vision=vision, where=str(path))
    settings = image_settings(folder) or (image_settings(beside) if beside else None)
    images = ImageProcessor.from_config(
        config, read_json(settings) if settings else None, where=str(settings or folder)
    )
    conv_mode, _ = own_name(raw, folder.name)
    config = replace(config, image_aspect_ratio=images.image_aspect_ratio, conv_mode=conv_mode)
    return Pretrained(folder, raw, config, images)


def state_of(files: Iterable[Path]) -> str:
    """16 digits that are others when any of `files` is another one or was written anew: by place, size and time."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]


def image_settings(folder: Path) -> Path | None:
    """The file in `folder` that tells how pictures are prepared, if there is one."""
    return next((folder / name for name in (PREPROCESSOR, PROCESSOR) if (folder / name).is_file()), None)
