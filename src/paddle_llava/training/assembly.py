"""Stage 1 from the beginning: a LLaVA made of a text model and a vision tower that have never met.

A Vicuna's `config.json` with the keys of LLaVA's training scripts added is that of an original LLaVA checkpoint, and is
read as one; what such a checkpoint would hold comes from two folders and, for the projector, from a random draw or an
earlier stage 1. Source: `initialize_vision_modules` of haotian-liu/LLaVA (`llava/model/llava_arch.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llava import hub
from paddle_llava.checkpoints import names as naming
from paddle_llava.checkpoints.config_file import config_to_dict
from paddle_llava.checkpoints.folder import TensorFile, open_folder
from paddle_llava.checkpoints.parts import Joined, Part
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.checkpoints.torch_zip import TorchFile
from paddle_llava.checkpoints.write import ArraySource, TensorSource
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json
from paddle_llava.processing.images import ImageProcessor
from paddle_llava.processing.processor import PREPROCESSOR, LlavaProcessor
from paddle_llava.processing.templates import Template
from paddle_llava.processing.tokenizer import Tokenizer
from paddle_llava.training.config import TrainingConfig

if TYPE_CHECKING:
    from paddle_llava.llava import LlavaForConditionalGeneration, Progress

Shape = tuple[int, ...]
# Of LLaVA 1.5; what a file gives counts instead. `config.json` of an original checkpoint has these very keys.
DEFAULTS: dict[str, Any] = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
}
PART_KEYS = ("vision_tower", "pretrain_mm_mlp_adapter", *DEFAULTS)
_LLAVA_KEYS = {"text_config", "vision_config", "mm_vision_tower", "mm_projector_type"}


@dataclass(frozen=True)
class Assembly:
    """The parts: `folder` and `tower` hold the text model and CLIP, `adapter` is the file of a trained projector.

    `raw` is the `config.json` that an original checkpoint of all of it would have, `config` the same as we read it.
    Until it is written in the `hf` layout, `<image>` stands outside of a vocabulary that has no room for it.
    """

    folder: Path
    tower: Path
    adapter: Path | None
    raw: dict[str, Any]
    config: LlavaConfig
    tokenizer: Tokenizer
    seed: int

    def processor(self, template: Template) -> LlavaProcessor:
        """The text model's tokenizer, and CLIP's preprocessing with the pictures padded or tiled as `config` says."""
        path = self.tower / PREPROCESSOR
        settings = read_json(path) if path.is_file() else None
        return LlavaProcessor(
            self.config, ImageProcessor.from_config(self.config, settings, where=str(path)), self.tokenizer, template
        )

    def said(self) -> str:
        """One line of what is put together."""
        projector = f"the projector of {self.adapter}" if self.adapter else f"a fresh projector (seed {self.seed})"
        return f"assembling a LLaVA from {self.folder}, {self.tower} and {projector}"

    def load(self, dtype: str, progress: Progress | None = None) -> LlavaForConditionalGeneration:
        """The model in `dtype`; `progress(tensors_done, tensors_in_all)` is called as they arrive."""
        from paddle_llava.llava import LlavaForConditionalGeneration

        with ExitStack() as files:
            return LlavaForConditionalGeneration.from_tensors(self.config, self.weights(files), dtype, progress)

    def weights(self, files: ExitStack) -> Joined:
        """Every parameter of the model; folders are open until `files` is closed.

        Raises `LlavaError` naming the missing, left-over and misshapen tensors of a part.
        """
        shapes = naming.parameter_shapes(self.config)
        of_tower = {name: shape for name, shape in shapes.items() if name.startswith("vision_tower.")}
        drawn = {name: shape for name, shape in shapes.items() if name.startswith(("projector.", "image_newline"))}
        of_text = {name: shape for name, shape in shapes.items() if name not in of_tower and name not in drawn}
        text_ignored = _TIED if self.config.text.tie_word_embeddings else _TEXT

        def named(layout: Layout) -> dict[str, str]:
            return naming.stored_names(self.config, layout)

        def tower_named(layout: Layout) -> dict[str, str]:
            return naming.tower_names(of_tower, layout)

        text, tower = open_folder(self.folder, files), open_folder(self.tower, files)
        sources: list[TensorSource] = [
            Part(self.folder, text, naming.CHECKPOINT_NAMES, of_text, text_ignored, named),
            Part(self.tower, tower, naming.TOWER_NAMES, of_tower, naming.IGNORED_IN_TOWER, tower_named),
        ]
        if self.adapter is None:
            sources.append(ArraySource(draw_projector(drawn, self.seed)))
        else:
            trained = _open_adapter(self.adapter, files)
            sources.append(Part(self.adapter, trained, _ADAPTER_NAMES, drawn, _EMBEDDINGS, named))
        return Joined(sources)


_TEXT = naming.IGNORED
_TIED = re.compile(rf"{naming.IGNORED.pattern}|lm_head\.weight")
# What stood beside the projector where marks around a picture were trained too, which LLaVA 1.5 has not.
_EMBEDDINGS = re.compile(r".*embed_tokens\.weight")
_ADAPTER_NAMES: dict[Layout, naming.Table] = {"original": naming.CHECKPOINT_NAMES["original"]}


def find_assembly(config: TrainingConfig, folder: Path) -> Assembly | None:
    """The parts that `config` names, with `folder` that of its model; None when this is a LLaVA already.

    Raises `LlavaError` when a part cannot be had, is of another kind, or does not go with the others.
    """
    path = folder / "config.json"
    raw = read_json(path) if path.is_file() else {}
    given = {key: value for key in PART_KEYS if (value := getattr(config, key)) is not None}
    if _LLAVA_KEYS & raw.keys() or not raw:
        if given:
            raise LlavaError(f"{', '.join(given)}: {folder} is a whole LLaVA, which has its own; leave the key out")
        return None
    kind = raw.get("model_type")
    if kind != "llama":
        raise LlavaError(
            f"{path}: model_type {str(kind)[:40]!r}; a training starts from a LLaVA, "
            "or from a LLaMA model such as Vicuna and a vision_tower"
        )
    if config.vision_tower is None:
        raise LlavaError(
            f'{folder}: a text model alone; "vision_tower": "openai/clip-vit-large-patch14-336" gives it eyes'
        )
    if config.lora or config.lora_path:
        raise LlavaError(f"lora: {folder} is a text model alone; adapters are for a whole LLaVA, so pretrain one first")
    tower = hub.tower_folder(config.vision_tower)
    tokenizer = Tokenizer.from_pretrained(folder)
    raw = {**raw, **DEFAULTS, **given, "mm_vision_tower": config.vision_tower}
    if raw["image_aspect_ratio"] == "anyres":
        raw["mm_patch_merge_type"] = "spatial_unpad"
    llava = LlavaConfig.from_dict(raw, vision=read_json(tower / "config.json"), where=str(path))
    llava, tokenizer = _with_image_token(llava, tokenizer, path)
    config_to_dict(llava, "hf")  # what cannot be written is refused now, not after the training
    adapter = config.pretrain_mm_mlp_adapter
    return Assembly(folder, tower, _adapter_file(adapter) if adapter else None, raw, llava, tokenizer, config.seed)


def _with_image_token(config: LlavaConfig, tokenizer: Tokenizer, path: Path) -> tuple[LlavaConfig, Tokenizer]:
    """With `<image>` in the vocabulary where it is there already or there is room for it.

    A vocabulary that is full, as Vicuna's is, grows when the result is written.
    """
    size, used = config.text.vocab_size, tokenizer.vocab_size
    if used > size or size - used == 1:
        raise LlavaError(f"{path}: vocab_size is {size}, but the tokenizer has {used} tokens; they do not go together")
    if tokenizer.image_token_id is not None:
        return replace(config, image_token_id=tokenizer.image_token_id), tokenizer
    if used == size:
        return config, tokenizer
    text = replace(config.text, pad_token_id=used + 1)
    return replace(config, text=text, image_token_id=used), tokenizer.with_image_token(used, used + 1)


def draw_projector(shapes: Mapping[str, Shape], seed: int) -> dict[str, np.ndarray]:
    """Fresh float32 parameters as torch draws those of a Linear: uniform in ±1/sqrt(inputs), weight and bias alike.

    `image_newline` is normal with a deviation of 1/sqrt(hidden_size).
    """
    arrays = {}
    for number, (name, shape) in enumerate(shapes.items()):
        random = np.random.default_rng([seed, number])
        if name == "image_newline":
            arrays[name] = random.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[0]))
        else:
            bound = 1 / math.sqrt(shapes[name.rpartition(".")[0] + ".weight"][0])
            arrays[name] = random.uniform(-bound, bound, shape).astype(np.float32)
    return arrays


def _adapter_file(given: str) -> Path:
    path = Path(given).expanduser()
    path = path / "mm_projector.bin" if path.is_dir() else path
    if not path.is_file():
        raise LlavaError(f"pretrain_mm_mlp_adapter: {path}: no such file")
    return path


def _open_adapter(path: Path, files: ExitStack) -> dict[str, TensorFile]:
    """The tensors of a `mm_projector.bin`, whatever its training had put before their names."""
    file: TensorFile = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
    files.callback(file.close)
    return dict.fromkeys(file.names(), file)
