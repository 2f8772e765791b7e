"""Small random checkpoints that `transformers` writes, and what it answers with them.

Weights are drawn so that answers vary and depend on the picture: at `transformers`' own scale (0.02) so narrow a
model would say nearly the same whatever it is shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from vocabulary import build_tokenizer

from reference_cases import ANSWER_TOKENS, PATCH, PHOTOS, PINPOINTS, SYSTEM, TILE, Case

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
    "projection_dim": 16,
}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_checkpoint(
    folder: Path,
    *,
    anyres: bool,
    seed: int,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    preprocessing: str = "pad",
    pinpoints: Sequence[tuple[int, int]] = PINPOINTS,
    legacy_tokenizer: bool = True,
    dtype: torch.dtype = torch.float32,
    **joint: Any,
) -> None:
    """Have `transformers` write a random v1.6 (`anyres`) or v1.5 checkpoint, with its processor.

    `text`, `vision` and `joint` are fields of its configurations; `preprocessing` (pad, crop, resize) is v1.5's.
    """
    tokenizer = _tokenizer(legacy_tokenizer)
    joint = {"image_token_index": tokenizer.image_token_id, "pad_token_id": tokenizer.pad_token_id, **joint}
    # A few tokens more than the tokenizer has, as in published checkpoints.
    vocabulary = {"vocab_size": len(tokenizer) + 14, "pad_token_id": tokenizer.pad_token_id}
    text_config = transformers.LlamaConfig(**TEXT | vocabulary | (text or {}))
    vision_config = transformers.CLIPVisionConfig(**VISION | (vision or {}))
    if anyres:
        joint["image_grid_pinpoints"] = [list(pinpoint) for pinpoint in pinpoints]
        config = transformers.LlavaNextConfig(vision_config=vision_config, text_config=text_config, **joint)
        model = transformers.LlavaNextForConditionalGeneration(config)
    else:
        config = transformers.LlavaConfig(vision_config=vision_config, text_config=text_config, **joint)
        model = transformers.LlavaForConditionalGeneration(config)
    _draw_weights(model, seed, silent=[tokenizer.image_token_id, tokenizer.pad_token_id])
    model.to(dtype).save_pretrained(folder)
    _processor(config, tokenizer, anyres, preprocessing).save_pretrained(folder)


def _tokenizer(legacy: bool) -> Any:
    """Every stretch between special tokens is prefixed with a space (`legacy`), or only the first."""
    small = build_tokenizer()
    settings = {"pad_token": "<pad>", "padding_side": "left", "extra_special_tokens": {"image_token": "<image>"}}
    if not legacy:
        model = json.loads(small.to_str())["model"]
        merges = [tuple(merge) for merge in model["merges"]]
        return transformers.LlamaTokenizer(model["vocab"], merges, add_bos_token=True, **settings)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=small, **names, **settings)


def _processor(config: Any, tokenizer: Any, anyres: bool, preprocessing: str) -> Any:
    side = config.vision_config.image_size
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if anyres:
        images: Any = LlavaNextImageProcessorPil(image_grid_pinpoints=config.image_grid_pinpoints, **sizes)
    elif preprocessing == "pad":
        images = LlavaImageProcessorPil(do_pad=True, **sizes)
    else:
        if preprocessing == "resize":
            sizes["size"] = sizes["crop_size"]
        images = CLIPImageProcessorPil(**sizes)
    kind = transformers.LlavaNextProcessor if anyres else transformers.LlavaProcessor
    return kind(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )


@torch.no_grad()
def _draw_weights(model: Any, seed: int, silent: list[int]) -> None:
    """Draw weights of a scale at which layers, pictures and norms all matter.

    The tokens `silent` get no embedding, so that no answer contains a picture's placeholder.
    """
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if "norm" in name or "layrnorm" in name:
            weight.copy_(name.endswith("weight") + 0.2 * noise)
        elif name.endswith("bias"):
            weight.copy_(0.2 * noise)
        elif weight.ndim == 1 or "embed" in name or "lm_head" in name:
            weight.copy_(0.3 * noise)
        else:
            weight.copy_(noise * 1.3 / weight[0].numel() ** 0.5)
    for head in (model.get_input_embeddings(), model.get_output_embeddings()):
        head.weight[silent] = 0.0


torch.set_num_threads(1)  # so small products only lose by being shared out


class Reference:
    """A checkpoint as `transformers` runs it in float32."""

    def __init__(self, folder: Path) -> None:
        loaded = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        self.model, self.loading = loaded
        self.model.eval()
        self.processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
        self.tokenizer = self.processor.tokenizer

    def inputs(self, case: Case) -> dict[str, torch.Tensor]:
        pictures = {"images": case.pictures} if case.sizes else {}
        return dict(self.processor(text=list(case.prompts), padding=True, return_tensors="pt", **pictures))

    @torch.no_grad()
    def logits(self, case: Case) -> np.ndarray:
        """float32 [batch, length, vocab_size]."""
        return self.model(**self.inputs(case)).logits.numpy()

    def tiles(self, case: Case) -> np.ndarray:
        """float32 [tiles, 3, S, S], without the tiles that only even out a batch."""
        inputs = self.inputs(case)
        pixels = inputs["pixel_values"].numpy()
        if pixels.ndim == 4:
            return pixels
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.model.config
        counts = [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in inputs["image_sizes"].tolist()
        ]
        return np.concatenate([views[:count] for views, count in zip(pixels, counts, strict=True)])

    @torch.no_grad()
    def generate(self, inputs: dict[str, Any], count: int, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
        """The new tokens, greedily [batch, steps], and by how much each one's score led the next best."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=count,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :].numpy()
        best = torch.stack(output.scores, dim=1).topk(2).values
        return tokens, (best[..., 0] - best[..., 1]).numpy()

    def converse(
        self, turns: list[tuple[str, str | None]], count: int = ANSWER_TOKENS, system: str = SYSTEM
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each turn's `generate`, of the Vicuna v1 prompt with everything said before.

        Earlier answers stand in it as the tokens that were generated: their text might be cut into other pieces
        when it is encoded anew. Everything is run from the start at each turn.
        """
        ids: list[int] = []
        pictures: list[Image.Image] = []
        answers = []
        for question, photo in turns:
            shown = "<image>\n" if photo else ""
            prompt = f"USER: {shown}{question} ASSISTANT:"
            first, ended = not ids, ids[-1:] == [self.tokenizer.eos_token_id]
            prompt = f"{system} {prompt}" if first else f"</s>{prompt}"
            if photo:
                pictures.append(Image.open(PHOTOS / photo))
            new = self.processor(text=prompt, images=pictures[-1:] if photo else None, add_special_tokens=first)
            ids += new["input_ids"][0][1 if ended else 0 :]
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            if pictures:
                inputs |= dict(self.processor.image_processor(pictures, return_tensors="pt"))
            tokens, leads = self.generate(inputs, count)
            ids += tokens[0].tolist()
            answers.append((tokens[0], leads[0]))
        return answers
