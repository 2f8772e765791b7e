"""LLaVA: image features from the vision tower take the places of image tokens before the decoder.

Tensors in, tensors out; `paddle_llava.llava` adds files and generation to it. Sources: LLaVA-1.5
(arXiv:2310.03744), LLaVA-NeXT (`anyres`, https://llava-vl.github.io/blog/2024-01-30-llava-next/), checked against
`transformers`' `LlavaForConditionalGeneration` and `LlavaNextForConditionalGeneration`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddle_llava.config import LlavaConfig
from paddle_llava.geometry import ImageLayout
from paddle_llava.models.clip import CLIPVisionTower
from paddle_llava.models.kv_cache import KVCache
from paddle_llava.models.llama import LlamaDecoder
from paddle_llava.models.projector import build_projector

TILES_AT_A_TIME = 8
IGNORE_INDEX = -100


@dataclass(frozen=True)
class LlavaOutput:
    """`logits` [batch, length, vocab_size], in the parameters' dtype."""

    logits: Tensor


class LlavaNetwork(nn.Layer):
    """Vision tower, projector, decoder and output head."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = CLIPVisionTower(config.vision, config.vision_feature_layer)
        self.projector = build_projector(config)
        if config.has_image_newline:
            scale = config.text.hidden_size**-0.5
            normal = nn.initializer.Normal(std=scale)
            self.image_newline = self.create_parameter([config.text.hidden_size], default_initializer=normal)
        self.language_model = LlamaDecoder(config.text)
        if not config.text.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias_attr=False)

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | list[list[int]]) -> list[Tensor]:
        """Image features as the decoder takes them, one [num_features, hidden_size] tensor a picture.

        `pixel_values` is [tiles of all pictures, 3, S, S], base view first in each; `image_sizes` holds each picture's
        own (height, width) in pixels before preprocessing.
        """
        sizes = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
        layouts = [self.config.image_layout((height, width)) for height, width in sizes]
        if sum(layout.tiles for layout in layouts) != pixel_values.shape[0]:
            raise ValueError(f"{pixel_values.shape[0]} tiles do not belong to {len(sizes)} pictures of sizes {sizes}")
        batches = pixel_values.split(_sections(pixel_values.shape[0]))
        tiles = paddle.concat([self._encode_tiles(batch) for batch in batches])
        features, start = [], 0
        for layout in layouts:
            features.append(self._arrange(tiles[start : start + layout.tiles], layout))
            start += layout.tiles
        return features

    def _encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """[tiles, 3, S, S] to [tiles, features, text hidden_size]."""
        frozen = all(parameter.stop_gradient for parameter in self.vision_tower.parameters())
        with paddle.no_grad() if frozen else nullcontext():
            hidden_states = self.vision_tower(pixel_values)
        return self.projector(hidden_states if self.config.keep_cls else hidden_states[:, 1:])

    def _arrange(self, tiles: Tensor, layout: ImageLayout) -> Tensor:
        """One picture's tiles [tiles, features, hidden] to [num_features, hidden]: base view, then unpadded rows."""
        base, rest = tiles[0], tiles[1:]
        if layout.tiles == 1:
            return base
        if not layout.newlines:
            return tiles.flatten(0, 1)
        grid_rows, grid_columns = layout.grid
        side, hidden_size = int(layout.base**0.5), tiles.shape[-1]
        # With the class token kept, the high-resolution tiles still hold only their patches.
        rest = rest[:, -side * side :].reshape([grid_rows, grid_columns, side, side, hidden_size])
        plane = rest.transpose([0, 2, 1, 3, 4]).reshape([grid_rows * side, grid_columns * side, hidden_size])
        top, left = layout.top, layout.left
        plane = plane[top : top + layout.rows, left : left + layout.columns]
        newlines = self.image_newline.astype(tiles.dtype).expand([layout.rows, 1, hidden_size])
        return paddle.concat([base, paddle.concat([plane, newlines], axis=1).flatten(0, 1)])

    def embed(self, input_ids: Tensor, image_features: list[Tensor]) -> Tensor:
        """Embeddings [batch, length, hidden_size] of `input_ids`, with `image_features` in the image tokens' places."""
        is_image = input_ids == self.config.image_token_id
        # An image token may lie outside the vocabulary (-200); its embedding is replaced in any case.
        embeds = self.language_model.embed_tokens(paddle.where(is_image, paddle.zeros_like(input_ids), input_ids))
        places = is_image.flatten().nonzero().flatten()
        given = sum(features.shape[0] for features in image_features)
        if places.shape[0] != given:
            raise ValueError(f"{places.shape[0]} image tokens in input_ids, but {given} image features")
        if not given:
            return embeds
        features = paddle.concat(image_features).astype(embeds.dtype)
        return paddle.scatter(embeds.flatten(0, 1), places, features).reshape(embeds.shape)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[..., hidden_size] to [..., vocab_size]."""
        if self.config.text.tie_word_embeddings:
            return paddle.matmul(hidden_states, self.language_model.embed_tokens.weight, transpose_y=True)
        return self.lm_head(hidden_states)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | list[list[int]] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_features: list[Tensor] | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> LlavaOutput:
        """Logits of every position, [batch, length, vocab_size]; with `last_only` of the last, [batch, 1, vocab_size].

        `input_ids` int64 [batch, length] with one image token a feature, pictures in reading order over the batch;
        either `pixel_values` and `image_sizes`, or `image_features` from `encode_images`. `attention_mask`
        [batch, past + length], 1 or True on tokens and 0 on padding (on either side); positions count tokens only.
        With a `cache`, `input_ids` are the tokens after those it holds.
        """
        if image_features is None:
            image_features = []
            if pixel_values is not None:
                if image_sizes is None:
                    raise ValueError("image_sizes are needed beside pixel_values")
                image_features = self.encode_images(pixel_values, image_sizes)
        past, length = 0 if cache is None else cache.length, input_ids.shape[1]
        valid = None if attention_mask is None else attention_mask.astype("bool")
        if valid is not None and bool(valid.all()):
            valid = None
        if position_ids is None:
            if valid is None:
                position_ids = paddle.arange(past, past + length).unsqueeze(0)
            else:
                position_ids = (valid.astype("int64").cumsum(-1) - 1).clip(min=0)[:, past:]
        embeds = self.embed(input_ids, image_features)
        hidden_states = self.language_model(embeds, position_ids, valid, cache)
        return LlavaOutput(self.logits(hidden_states[:, -1:] if last_only else hidden_states))

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        lengths: list[list[int]],
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | list[list[int]] | None = None,
    ) -> Tensor:
        """The cross-entropy summed over all targets: a float32 scalar, to be divided by their number.

        `labels` [batch, length] are shifted already: `labels[i]` is what follows position i, -100 where nothing is
        learnt. `lengths` are those of the samples packed into each row, padding last. Only positions with a target go
        through the output head, which with 576 image features a picture is the smaller part.
        """
        features: list[Tensor] = []
        if pixel_values is not None:
            if image_sizes is None:
                raise ValueError("image_sizes are needed beside pixel_values")
            features = self.encode_images(pixel_values, image_sizes)
        embeds = self.embed(input_ids, features)
        if self.language_model.recompute:
            # A recomputed layer hands its weights no gradient when its input wants none, as with frozen embeddings.
            embeds.stop_gradient = False
        hidden_states = self.language_model(embeds, position_ids, lengths=lengths)
        targets = (labels != IGNORE_INDEX).flatten().nonzero().flatten()
        logits = self.logits(paddle.gather(hidden_states.flatten(0, 1), targets)).astype("float32")
        return F.cross_entropy(logits, paddle.gather(labels.flatten(), targets), reduction="sum")


def _sections(tiles: int) -> list[int]:
    return [min(TILES_AT_A_TIME, tiles - start) for start in range(0, tiles, TILES_AT_A_TIME)]
