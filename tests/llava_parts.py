"""A LLaVA taken apart into what its stage 1 began with: a text model, a CLIP, and the projector between them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.names import is_linear, stored_names, tower_names
from paddle_llava.checkpoints.safetensors_file import write_safetensors
from paddle_llava.pretrained import find_pretrained
from paddle_llava.processing.images import ImageProcessor

Arrays = dict[str, np.ndarray]


class Parts(NamedTuple):
    """Folders, and the projector's tensors under the names of an `mm_projector.bin`."""

    vicuna: Path
    clip: Path
    projector: Arrays


def take_apart(checkpoint: Path, folder: Path, *, vocabulary: int | None = None) -> Parts:
    """The parts of `checkpoint`, float32, below `folder`.

    With `vocabulary` tokens only, of which `<image>` is none, as Vicuna's; else with the checkpoint's own tokenizer.
    """
    pretrained = find_pretrained(checkpoint)
    config = pretrained.config
    with pretrained.open_weights() as weights:
        ours = {name: to_dtype(weights.read(name), weights.dtype(name), "float32") for name in weights.names()}
    if vocabulary is not None:
        rows = ours["language_model.embed_tokens.weight"][:vocabulary]
        ours["language_model.embed_tokens.weight"] = np.ascontiguousarray(rows)
        if "lm_head.weight" in ours:
            ours["lm_head.weight"] = np.ascontiguousarray(ours["lm_head.weight"][:, :vocabulary])
    named = stored_names(config, "original")
    of_tower = [name for name in ours if name.startswith("vision_tower.")]
    of_projector = [name for name in ours if name.startswith("projector.") or name == "image_newline"]
    text = {named[name]: _turned(ours, name) for name in ours if name not in of_tower and name not in of_projector}
    text["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)  # which older files carry
    tower = {theirs: _turned(ours, name) for name, theirs in tower_names(of_tower, "hf").items()}
    tower["text_model.final_layer_norm.weight"] = np.ones(4, np.float32)  # CLIP's other half

    vicuna, clip = folder / "vicuna", folder / "clip"
    raw = dict(pretrained.raw["text_config"])
    raw["vocab_size"] = vocabulary or raw["vocab_size"]
    write_part(vicuna, {**raw, "architectures": ["LlamaForCausalLM"]}, text)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, vicuna)
    if vocabulary is not None:
        _forget(vicuna, vocabulary)
    write_part(clip, {"model_type": "clip", "vision_config": pretrained.raw["vision_config"]}, tower)
    images = ImageProcessor(tile_size=config.vision.image_size, shortest_edge=config.vision.image_size)
    (clip / "preprocessor_config.json").write_text(json.dumps(images.to_dict()))
    return Parts(vicuna, clip, {named[name]: _turned(ours, name) for name in of_projector})


def write_part(folder: Path, raw: dict[str, object], arrays: Arrays) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    save(folder / "model.safetensors", arrays)


def save(path: Path, arrays: Arrays) -> None:
    write_safetensors(path, {name: ("float32", array.shape) for name, array in arrays.items()}, arrays.__getitem__)


def _turned(arrays: Arrays, name: str) -> np.ndarray:
    return np.ascontiguousarray(arrays[name].T) if is_linear(name) else arrays[name]


def _forget(folder: Path, vocabulary: int) -> None:
    """Take the tokens from `vocabulary` on out of the tokenizer."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < vocabulary]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("pad_token", "image_token"):
        settings.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
