"""Words and pictures -> what the model takes: token ids with one image token a feature, and pixel tiles."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava import hub
from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID, Layout, LlavaConfig
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json, write_json
from paddle_llava.pretrained import PREPROCESSOR, PROCESSOR, find_pretrained, image_settings
from paddle_llava.processing.boxes import Box, answer_boxes
from paddle_llava.processing.companions import read_companions
from paddle_llava.processing.conversation import encode, parse_prompt
from paddle_llava.processing.images import ImageProcessor, read_size
from paddle_llava.processing.loading import ImageSource, load_image
from paddle_llava.processing.template_choice import template_for
from paddle_llava.processing.templates import TEMPLATES, Template
from paddle_llava.processing.tokenizer import IMAGE_TOKEN, Tokenizer


class LlavaProcessor:
    """The tokenizer and the image preprocessing of one checkpoint, and the configuration that joins them.

    `template` is the one that the checkpoint's conversations are told in, unless a session is given another;
    `companions` are files that go along when the processor is saved, by name.
    """

    def __init__(
        self,
        config: LlavaConfig,
        image_processor: ImageProcessor,
        tokenizer: Tokenizer,
        template: Template = TEMPLATES["vicuna_v1"],
        companions: Mapping[str, bytes] | None = None,
    ) -> None:
        self.template = template
        self.companions = dict(companions or {})
        self.config = config
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, conv_mode: str | None = None) -> LlavaProcessor:
        """The processor of a published name, of which no weights are downloaded, or of a folder.

        `conv_mode` is the name or the file of a template to take instead of the checkpoint's.

        Preprocessing follows the folder's own `preprocessor_config.json`, or the `processor_config.json` that
        transformers 5 writes; without either, `image_aspect_ratio` of the configuration (original and Paddle layouts).
        """
        folder = hub.local_folder(name_or_path, weights=False)
        tokenizer = Tokenizer.from_pretrained(folder)
        if (folder / "config.json").is_file():
            pretrained = find_pretrained(folder, weights=False)
            raw, config, images = pretrained.raw, pretrained.config, pretrained.image_processor
        else:
            path = image_settings(folder) or folder / PROCESSOR
            raw = read_json(path)
            config = _config_from_processor(folder / PROCESSOR, raw, tokenizer)
            images = ImageProcessor.from_config(config, raw, where=str(path))
        joint = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
        if tokenizer.image_token_id is None and config.image_token_id >= 0:
            raise LlavaError(
                f"{folder}: the tokenizer has no {IMAGE_TOKEN}, which is token {config.image_token_id} in config.json; "
                "its files are from another checkpoint, fetch them again"
            )
        if tokenizer.num_pieces > config.text.vocab_size:
            raise LlavaError(
                f"{folder}: the tokenizer has {tokenizer.num_pieces} pieces, and vocab_size in config.json is only "
                f"{config.text.vocab_size}; one of the two is from another checkpoint"
            )
        if tokenizer.image_token_id not in (None, config.image_token_id):
            raise LlavaError(
                f"{folder}: {IMAGE_TOKEN} is token {tokenizer.image_token_id} of the tokenizer, but image token "
                f"{config.image_token_id} in config.json; one of the two files is from another checkpoint"
            )
        template, guessed = template_for(raw, conv_mode, Path(name_or_path).name)
        if guessed:
            warnings.warn(guessed, stacklevel=2)
        return cls(config, images, tokenizer, template, read_companions(folder, joint))

    def save_pretrained(self, path: str | Path, layout: Layout = "hf") -> None:
        """Write the tokenizer, `preprocessor_config.json` and the companions to the folder `path`.

        In the `hf` layout `<image>` is a token: the vocabulary of an original checkpoint gets it, and `<pad>`, as
        its first new tokens, where `LlavaForConditionalGeneration.save_pretrained` puts their embeddings. And
        `processor_config.json` is written too, without which `transformers` could not count a picture's tokens.
        """
        folder = Path(path)
        self.tokenizer_of(layout).save_pretrained(folder)
        for name, content in self.companions.items():
            (folder / name).write_bytes(content)
        images = self.image_processor.to_dict()
        write_json(folder / PREPROCESSOR, images)
        if layout == "hf":
            joint = {
                "image_token": IMAGE_TOKEN,
                "num_additional_image_tokens": 1,  # the class token, which the strategy `default` takes off again
                "patch_size": self.config.vision.patch_size,
                "processor_class": images["processor_class"],
                "vision_feature_select_strategy": "full" if self.config.keep_cls else "default",
            }
            write_json(folder / PROCESSOR, joint)

    def tokenizer_of(self, layout: Layout) -> Tokenizer:
        """The tokenizer as `layout` has it. Raises `LlavaError` where it does not go with the vocabulary's size."""
        if layout != "hf" or self.config.image_token_id != ORIGINAL_IMAGE_TOKEN_ID:
            return self.tokenizer
        size = self.config.text.vocab_size
        return self.tokenizer.with_image_token(size, size + 1)

    def __call__(
        self, text: str | Sequence[str], images: ImageSource | Sequence[ImageSource] | None = None
    ) -> dict[str, Any]:
        """`prepare`, as Paddle tensors for `model(**inputs)` and `model.generate(**inputs)`."""
        import paddle  # only here: data workers prepare arrays without it

        return {name: paddle.to_tensor(array) for name, array in self.prepare(text, images).items()}

    def prepare(
        self, text: str | Sequence[str], images: ImageSource | Sequence[ImageSource] | None = None
    ) -> dict[str, np.ndarray]:
        """Prompts as they stand, with `<image>` where each picture goes, to numpy arrays.

        `images` are the pictures of all prompts in reading order, from any source that `load_image` takes. Special
        tokens in `text` are structure here; `ChatSession` keeps a user's words from being read so. Gives `input_ids`
        int64 [batch, length], padded on the left, `attention_mask` int64 of the same shape, and with pictures
        `pixel_values` float32 [tiles, 3, S, S] and `image_sizes` int64 [pictures, 2] (height, width). Raises
        `LlavaError` when prompts and pictures do not match.
        """
        texts = [text] if isinstance(text, str) else list(text)
        sources = image_sources(images)
        asked = sum(prompt.count(IMAGE_TOKEN) for prompt in texts)
        if asked != len(sources):
            raise LlavaError(f"the text has {asked} {IMAGE_TOKEN} but {len(sources)} pictures are given")
        pixels = self.prepare_images(sources) if sources else {}
        counts = iter(self.feature_counts(pixels["image_sizes"]) if sources else [])
        rows = [self.expand_image_tokens(self._encode(prompt), counts) for prompt in texts]
        return pad_left(rows, self.padding_id) | pixels

    def prepare_images(self, sources: Sequence[ImageSource]) -> dict[str, np.ndarray]:
        """`pixel_values` and `image_sizes` of pictures; the one way for chat, training and evaluation."""
        pixel_values, image_sizes = self.image_processor([load_image(source) for source in sources])
        return {"pixel_values": pixel_values, "image_sizes": image_sizes}

    def answer_boxes(self, text: str, width: int, height: int) -> list[Box]:
        """The boxes that an answer names, in pixels of the `width` x `height` picture that it is about."""
        return answer_boxes(text, width, height, self.image_processor.frame(width, height))

    def feature_counts(self, image_sizes: np.ndarray) -> list[int]:
        """How many features, and so image tokens, each picture of `image_sizes` (height, width) becomes."""
        return [self.config.image_layout((int(h), int(w))).num_features for h, w in image_sizes]

    def expand_image_tokens(self, token_ids: Sequence[int], feature_counts: Iterator[int]) -> list[int]:
        """`token_ids` with each image token repeated as often as the next of `feature_counts` says."""
        image_token_id = self.config.image_token_id
        expanded: list[int] = []
        for token in token_ids:
            expanded += [token] * (next(feature_counts) if token == image_token_id else 1)
        return expanded

    @property
    def padding_id(self) -> int:
        """The token that fills shorter rows; masked, so that any will do."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id or 0

    def _encode(self, prompt: str) -> list[int]:
        return encode(parse_prompt(prompt, self.tokenizer), self.tokenizer).ids


def _config_from_processor(path: Path, images: dict[str, Any], tokenizer: Tokenizer) -> LlavaConfig:
    """What `processor_config.json` tells of the model: enough to count image features.

    `images` is the preprocessing, which stands in that file or in one of its own.
    """
    settings, images = read_json(path), images.get("image_processor", images)
    if not isinstance(images, dict) or not isinstance(settings.get("patch_size"), int):
        raise LlavaError(f"{path}: image_processor and patch_size are needed where there is no config.json")
    key = "crop_size" if images.get("crop_size") else "size"
    side, _ = read_size(images, key, None, str(path))
    raw = {
        "model_type": "llava_next" if images.get("image_grid_pinpoints") is not None else "llava",
        "image_grid_pinpoints": images.get("image_grid_pinpoints"),
        "image_token_index": tokenizer.image_token_id,
        "text_config": {"vocab_size": tokenizer.vocab_size},
        "vision_config": {"image_size": side, "patch_size": settings["patch_size"]},
        "vision_feature_select_strategy": settings.get("vision_feature_select_strategy", "default"),
    }
    return LlavaConfig.from_dict(raw, where=str(path))


def image_sources(images: ImageSource | Sequence[ImageSource] | None) -> list[ImageSource]:
    """No picture, one or several, as a list."""
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]


def pad_left(rows: list[list[int]], padding_id: int) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, int64 [rows, longest], the padding in front."""
    length = max(map(len, rows))
    input_ids = np.full((len(rows), length), padding_id, dtype=np.int64)
    attention_mask = np.zeros((len(rows), length), dtype=np.int64)
    for row, ids in enumerate(rows):
        input_ids[row, length - len(ids) :] = ids
        attention_mask[row, length - len(ids) :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
