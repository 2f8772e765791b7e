"""Where image features go, and what the whole network refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava.config import LlavaConfig, TextConfig, VisionConfig
from paddle_llava.models.kv_cache import KVCache
from paddle_llava.models.llava import LlavaNetwork

SIDE = 3  # patches along a tile
CONFIG = LlavaConfig(
    VisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=6, patch_size=2
    ),
    TextConfig(
        vocab_size=30,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        bos_token_id=1,
    ),
    image_token_id=29,
    image_aspect_ratio="anyres",
    image_grid_pinpoints=((6, 12), (12, 6), (12, 12), (18, 6), (6, 18), (12, 18)),
)
PLAIN = replace(CONFIG, image_aspect_ratio="pad", image_grid_pinpoints=None)
CLS, NEWLINE = -7.0, -1.0


def network(config: LlavaConfig) -> LlavaNetwork:
    paddle.seed(0)
    model = LlavaNetwork(config)
    model.eval()
    return model


def numbering_network(config: LlavaConfig) -> LlavaNetwork:
    """Instead of the tower, a number for each patch: 1000 * tile + 10 * row + column within the tile."""
    model = network(config)
    patches = np.array([10 * row + column for row in range(SIDE) for column in range(SIDE)], np.float32)

    def numbers(pixel_values: paddle.Tensor) -> paddle.Tensor:
        """The pixels of a tile all say its number."""
        values = 1000 * pixel_values[:, 0, 0, :1].numpy() + patches
        if config.keep_cls:
            values = np.concatenate([np.full((len(values), 1), CLS, np.float32), values], axis=1)
        return paddle.to_tensor(values).unsqueeze(-1).expand([-1, -1, config.text.hidden_size])

    model._encode_tiles = numbers
    if config.has_image_newline:
        model.image_newline.set_value(np.full(config.text.hidden_size, NEWLINE, np.float32))
    return model


def expected_numbers(config: LlavaConfig, size: tuple[int, int], first_tile: int) -> list[float]:
    """A picture's features one by one, from its layout and nothing else."""
    layout = config.image_layout(size)
    cls = [CLS] * config.keep_cls

    def whole(tile: int) -> list[float]:
        return [*cls, *(1000.0 * tile + 10 * row + column for row in range(SIDE) for column in range(SIDE))]

    numbers = whole(first_tile)
    if layout.tiles > 1 and not config.unpad:
        return numbers + [value for tile in range(1, layout.tiles) for value in whole(first_tile + tile)]
    for row in range(layout.top, layout.top + layout.rows):
        for column in range(layout.left, layout.left + layout.columns):
            tile = first_tile + 1 + row // SIDE * layout.grid[1] + column // SIDE
            numbers.append(1000.0 * tile + 10 * (row % SIDE) + column % SIDE)
        numbers.append(NEWLINE)
    return numbers


CONFIGS = {
    "v1.5": PLAIN,
    "v1.5 with class token": replace(PLAIN, keep_cls=True),
    "v1.6": CONFIG,
    "v1.6 with class token": replace(CONFIG, keep_cls=True),
    "v1.6 flat": replace(CONFIG, unpad=False),
}


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6))
def test_each_feature_is_in_its_place(name: str, sizes: list[tuple[int, int]]) -> None:
    """Also of many pictures at once, whose tiles are encoded some at a time."""
    config = CONFIGS[name]
    model = numbering_network(config)
    tiles = sum(config.image_layout(size).tiles for size in sizes)
    pixels = np.arange(tiles, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 6, 6), np.float32)
    found = model.encode_images(paddle.to_tensor(pixels), [list(size) for size in sizes])
    first_tile = 0
    for size, features in zip(sizes, found, strict=True):
        assert features[:, 0].tolist() == expected_numbers(config, size, first_tile)
        assert (features == features[:, :1]).all()
        assert len(features) == config.image_layout(size).num_features
        first_tile += config.image_layout(size).tiles


def test_an_unpadded_picture_spelled_out() -> None:
    """12 high and 2 wide on two tiles, one above the other: of 3 columns of patches, the middle one is left."""
    model = numbering_network(replace(CONFIG, image_grid_pinpoints=((12, 6),)))
    pixels = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 6, 6), np.float32)
    (features,) = model.encode_images(paddle.to_tensor(pixels), [[12, 2]])
    base = [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert features[:, 0].tolist() == [*base, 1001, -1, 1011, -1, 1021, -1, 2001, -1, 2011, -1, 2021, -1]


@pytest.mark.parametrize("image_token_id", [29, -200])
def test_features_take_the_places_of_image_tokens_in_reading_order(image_token_id: int) -> None:
    model = network(replace(PLAIN, image_token_id=image_token_id))
    x = image_token_id
    ids = np.array([[1, x, x, 5, x], [x, 7, 8, x, 9]])
    features = [paddle.to_tensor(np.full((n, 12), value, np.float32)) for n, value in ((2, 100.0), (1, 200), (2, 300))]
    embeds = model.embed(paddle.to_tensor(ids), features).numpy()
    assert embeds[:, :, 0][ids == x].tolist() == [100, 100, 200, 300, 300]
    table = model.language_model.embed_tokens.weight.numpy()
    for row, column in np.argwhere(ids != x):
        assert np.array_equal(embeds[row, column], table[ids[row, column]])


@pytest.mark.parametrize(("tokens", "given"), [(3, 2), (0, 1), (2, 0)])
def test_as_many_image_tokens_as_features(tokens: int, given: int) -> None:
    model = network(PLAIN)
    ids = paddle.to_tensor([[1, *[29] * tokens, 4]])
    features = [paddle.zeros([1, 12])] * given
    with pytest.raises(ValueError, match=f"{tokens} image tokens in input_ids, but {given} image features"):
        model.embed(ids, features)


def test_pictures_without_their_sizes() -> None:
    with pytest.raises(ValueError, match="image_sizes are needed"):
        network(PLAIN)(paddle.to_tensor([[1]]), pixel_values=paddle.zeros([1, 3, 6, 6]))


def test_tiles_of_other_pictures() -> None:
    with pytest.raises(ValueError, match=r"4 tiles do not belong to 1 pictures of sizes \[\[6, 12\]\]"):
        network(CONFIG).encode_images(paddle.zeros([4, 3, 6, 6]), [[6, 12]])


@pytest.mark.parametrize("tied", [True, False])
def test_last_only_is_the_last(tied: bool) -> None:
    model = network(replace(PLAIN, text=replace(PLAIN.text, tie_word_embeddings=tied)))
    assert ("lm_head.weight" in model.state_dict()) != tied
    ids = paddle.to_tensor([[1, 5, 6, 7], [1, 9, 8, 7]])
    whole, last = model(ids).logits, model(ids, last_only=True).logits
    assert whole.shape == [2, 4, 30]
    assert last.shape == [2, 1, 30]
    assert np.abs(whole[:, -1:].numpy() - last.numpy()).max() < 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side: str) -> None:
    model = network(PLAIN)
    ids, padding = [1, 5, 6, 7, 8], [0, 0, 0]
    left = side == "left"
    padded = paddle.to_tensor([padding + ids if left else ids + padding, [1, 2, 3, 4, 5, 6, 7, 8]])
    mask = paddle.to_tensor([[0] * 3 + [1] * 5 if left else [1] * 5 + [0] * 3, [1] * 8])
    found = model(padded, attention_mask=mask).logits.numpy()
    alone = model(paddle.to_tensor([ids])).logits.numpy()[0]
    assert np.abs(found[0, 3:] - alone if left else found[0, :5] - alone).max() < 1e-5
    whole = model(padded[1:]).logits.numpy()[0]
    assert np.abs(found[1] - whole).max() < 1e-5


def test_positions_go_on_behind_a_cache_and_padding() -> None:
    model = network(PLAIN)
    ids = paddle.to_tensor([[0, 0, 1, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7]])
    mask = paddle.to_tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    whole = model(ids, attention_mask=mask).logits.numpy()
    cache = KVCache(2)
    with paddle.no_grad():
        first = model(ids[:, :4], attention_mask=mask[:, :4], cache=cache).logits.numpy()
        rest = model(ids[:, 4:], attention_mask=mask, cache=cache).logits.numpy()
    found = np.concatenate([first, rest], axis=1)
    assert np.abs(found - whole)[mask.numpy() == 1].max() < 1e-5
