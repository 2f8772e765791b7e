"""What the decoder reads, by OpenVINO on the CPU: words and pictures to embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from openvino import CompiledModel, InferRequest

from paddle_llava.config import LlavaConfig
from paddle_llava.geometry import ImageLayout

TILES_AT_A_TIME = 4


class Inputs:
    """Runs the graphs of the token embedding and of the vision tower."""

    def __init__(
        self, config: LlavaConfig, embedding: CompiledModel, vision: CompiledModel, image_newline: np.ndarray | None
    ) -> None:
        self.config = config
        self._embedding: InferRequest = embedding.create_infer_request()
        self._vision: InferRequest = vision.create_infer_request()
        self._image_newline = image_newline

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[np.ndarray]:
        """One float32 [num_features, hidden_size] array a picture; arguments as the processor gives them."""
        layouts = [self.config.image_layout((height, width)) for height, width in np.asarray(image_sizes).tolist()]
        if sum(layout.tiles for layout in layouts) != len(pixel_values):
            raise ValueError(f"{len(pixel_values)} tiles do not belong to {len(layouts)} pictures")
        tiles = [
            _first(self._vision.infer({"pixel_values": np.asarray(pixel_values[start : start + TILES_AT_A_TIME])}))
            for start in range(0, len(pixel_values), TILES_AT_A_TIME)
        ]
        rest, features = np.concatenate(tiles), []
        for layout in layouts:
            features.append(arranged(rest[: layout.tiles], layout, self._image_newline))
            rest = rest[layout.tiles :]
        return features

    def embed(self, ids: np.ndarray, image_features: list[np.ndarray]) -> np.ndarray:
        """Embeddings float32 [batch, length, hidden_size] of `ids`, `image_features` in the image tokens' places."""
        is_image = ids == self.config.image_token_id
        embeds = _first(self._embedding.infer({"input": np.where(is_image, 0, ids)}))
        given = sum(map(len, image_features))
        if is_image.sum() != given:
            raise ValueError(f"{is_image.sum()} image tokens in input_ids, but {given} image features")
        if given:
            embeds[is_image] = np.concatenate(image_features)
        return embeds


def _first(outputs: Mapping[Any, np.ndarray]) -> np.ndarray:
    return next(iter(outputs.values()))


def arranged(tiles: np.ndarray, layout: ImageLayout, newline: np.ndarray | None) -> np.ndarray:
    """One picture's `tiles` [tiles, features, hidden] to [num_features, hidden]: base view, then unpadded rows, each
    with `newline` at its end (LLaVA-NeXT)."""
    base, rest = tiles[0], tiles[1:]
    if layout.tiles == 1:
        return base
    if not layout.newlines or newline is None:
        return tiles.reshape(-1, tiles.shape[-1])
    grid_rows, grid_columns = layout.grid
    side, width = int(layout.base**0.5), tiles.shape[-1]
    # With the class token kept, the high-resolution tiles still hold only their patches.
    plane = rest[:, -side * side :].reshape(grid_rows, grid_columns, side, side, width)
    plane = plane.transpose(0, 2, 1, 3, 4).reshape(grid_rows * side, grid_columns * side, width)
    plane = plane[layout.top : layout.top + layout.rows, layout.left : layout.left + layout.columns]
    ends = np.broadcast_to(newline, (layout.rows, 1, width))
    return np.concatenate([base, np.concatenate([plane, ends], axis=1).reshape(-1, width)])
