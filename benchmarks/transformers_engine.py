"""`transformers` on torch as an engine like ours: what a peer process runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration, logging

logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class TransformersEngine:
    """One conversation with its cache kept."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._dtype = getattr(torch, dtype)
        self._image_token_id = self._model.config.image_token_id
        self.reset()

    def reset(self) -> None:
        self._cache = DynamicCache(config=self._model.config)

    @property
    def length(self) -> int:
        return self._cache.get_seq_length()

    @torch.inference_mode()
    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        pixels = torch.from_numpy(pixel_values).to(self._dtype)
        features = self._model.get_image_features(pixels)
        return list(getattr(features, "pooler_output", features))

    @torch.inference_mode()
    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray:
        ids = torch.from_numpy(np.asarray(inputs["input_ids"]))
        is_image = ids == self._image_token_id
        embeds = self._model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        if inputs.get("image_features"):
            embeds[is_image] = torch.cat(inputs["image_features"]).to(embeds.dtype)
        return self._run(inputs_embeds=embeds)

    @torch.inference_mode()
    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        return self._run(input_ids=torch.from_numpy(np.asarray(token_ids))[:, None])

    def _run(self, **inputs: torch.Tensor) -> np.ndarray:
        output = self._model(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].float().numpy()
