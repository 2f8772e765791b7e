"""Pictures to tiles: against recorded pixels of `transformers`' processors, and the reading of settings."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paddle_llava.config import ANYRES_PINPOINTS, LlavaConfig, TextConfig, VisionConfig
from paddle_llava.errors import LlavaError
from paddle_llava.geometry import select_best_resolution
from paddle_llava.processing.images import CLIP_MEAN, CLIP_STD, ImageProcessor, fitted_size

HERE = Path(__file__).parent
FIXTURES = runpy.run_path(str(HERE / "make_image_fixtures.py"))
EXPECTED = np.load(HERE / "fixtures" / "images.npz")
CASES, TILE, picture = FIXTURES["CASES"], FIXTURES["TILE"], FIXTURES["picture"]

V15 = LlavaConfig(VisionConfig(image_size=336, patch_size=14), TextConfig())
V16 = replace(V15, image_aspect_ratio="anyres", image_grid_pinpoints=ANYRES_PINPOINTS)
# The settings that `llava-hf/llava-1.5-7b-hf` and `-v1.6-vicuna-7b-hf` are published with.
CLIP_FILE: dict[str, Any] = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(CLIP_MEAN),
    "image_processor_type": "CLIPImageProcessor",
    "image_std": list(CLIP_STD),
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
NEXT_FILE = {
    **CLIP_FILE,
    "aspect_ratio_setting": "anyres",
    "do_pad": True,
    "image_grid_pinpoints": [list(pinpoint) for pinpoint in ANYRES_PINPOINTS],
    "image_processor_type": "LlavaNextImageProcessor",
}
PAD_FILE = {**CLIP_FILE, "do_pad": True, "image_processor_type": "LlavaImageProcessor"}


def to_bytes(pixels: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    mean, std = (np.array(c)[:, None, None] for c in (processor.image_mean, processor.image_std))
    return np.rint((pixels * std + mean) * 255).astype(int)


@pytest.mark.parametrize("size", FIXTURES["SIZES"], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_the_recorded_ones(case: str, size: tuple[int, int]) -> None:
    processor = ImageProcessor(tile_size=TILE, **CASES[case])
    pixels, sizes = processor([picture(*size)])
    expected = EXPECTED[f"{case}/{size[0]}x{size[1]}"]
    assert pixels.shape == expected.shape
    assert abs(to_bytes(pixels, processor) - expected).max() <= 1
    assert sizes.tolist() == [list(size)]


@pytest.mark.parametrize("case", CASES)
def test_floats_are_the_recorded_ones(case: str) -> None:
    processor = ImageProcessor(tile_size=TILE, **CASES[case])
    pixels, _ = processor([picture(*FIXTURES["FLOAT_SIZE"])])
    assert abs((pixels - EXPECTED[f"{case}/float"]) * processor._normalized.std()).max() < 1.01 / 255


def test_images_follow_each_other_base_view_first() -> None:
    processor = ImageProcessor(tile_size=TILE, **CASES["anyres"])
    pictures = [picture(23, 64), picture(14, 14), picture(64, 23)]
    pixels, sizes = processor(pictures)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    assert sizes.dtype == np.int64
    assert sizes.tolist() == [[23, 64], [14, 14], [64, 23]]
    assert np.array_equal(pixels, np.concatenate([processor([one])[0] for one in pictures]))
    base = ImageProcessor("resize", TILE, TILE)([pictures[2]])[0]
    assert np.array_equal(pixels[-4:-3], base)  # 64x23 fits 42x14 best: the base view and three tiles


def test_no_images_give_empty_arrays() -> None:
    pixels, sizes = ImageProcessor()([])
    assert pixels.shape == (0, 3, 336, 336)
    assert sizes.shape == (0, 2)


def test_pad_uses_the_mean_colour_cut_to_integers() -> None:
    processor = ImageProcessor("pad", 28, 28)
    pixels, _ = processor([Image.new("RGB", (28, 14), "white")])
    colours = to_bytes(pixels, processor)[0]
    assert colours[:, 0, 0].tolist() == colours[:, -1, -1].tolist() == [122, 116, 104]
    assert colours[:, 14, 14].tolist() == [255, 255, 255]


def test_anyres_pads_black_and_centres() -> None:
    processor = ImageProcessor("anyres", 28, 28, ((56, 56),))
    pixels, _ = processor([Image.new("RGB", (56, 27), "white")])
    whole = to_bytes(pixels[1:].reshape(2, 2, 3, 28, 28), processor).transpose(0, 3, 1, 4, 2).reshape(56, 56, 3)
    assert (np.flatnonzero(whole[:, 5, 0]) == np.arange(14, 14 + 27)).all()
    assert set(whole.ravel().tolist()) == {0, 255}


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_fitted_size_fills_one_side_and_exceeds_none(height: int, width: int) -> None:
    target = select_best_resolution((height, width), ANYRES_PINPOINTS)
    fitted = fitted_size((height, width), target)
    assert 1 <= fitted[0] <= target[0]
    assert 1 <= fitted[1] <= target[1]
    assert fitted[0] == target[0] or fitted[1] == target[1]


@given(st.integers(1, 200), st.integers(1, 200))
def test_tiles_are_as_many_as_the_layout_says(height: int, width: int) -> None:
    vision = VisionConfig(image_size=TILE, patch_size=7)
    config = replace(V16, vision=vision, image_grid_pinpoints=FIXTURES["PINPOINTS"])
    pixels, _ = ImageProcessor.from_config(config)([Image.new("RGB", (width, height))])
    assert len(pixels) == config.image_layout((height, width)).tiles


@pytest.mark.parametrize("size", [(1, 2_000_000), (2_000_000, 1)])
@pytest.mark.parametrize("mode", ["crop", "pad", "resize", "anyres"])
def test_strips_cost_no_gigabytes(mode: Any, size: tuple[int, int]) -> None:
    processor = ImageProcessor(mode, 28, 28, ((28, 56), (56, 28)) if mode == "anyres" else ())
    height, width = size
    pixels, _ = processor([Image.new("RGB", (width, height), "red")])
    if mode != "pad":
        assert to_bytes(pixels, processor)[0, :, 14, 14].tolist() == [255, 0, 0]


def test_crop_of_a_strip_is_its_middle() -> None:
    strip = Image.new("RGB", (4001, 10), "black")
    strip.paste("white", (1900, 0, 2100, 10))
    processor = ImageProcessor("crop", 28, 28)
    assert (to_bytes(processor([strip])[0], processor) == 255).all()


def test_other_modes_become_rgb() -> None:
    processor = ImageProcessor("resize", 28, 28)
    clear = Image.new("RGBA", (5, 5), (10, 20, 30, 0))
    assert (to_bytes(processor([clear])[0], processor) == 255).all()


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(LlavaError, match=r"image 2 is empty \(0x4 pixels\)"):
        ImageProcessor()([Image.new("RGB", (1, 1)), Image.new("RGB", (0, 4))])


def test_published_files() -> None:
    assert ImageProcessor.from_config(V15, CLIP_FILE) == ImageProcessor()
    assert ImageProcessor.from_config(V15, PAD_FILE) == ImageProcessor("pad")
    assert ImageProcessor.from_config(V16, NEXT_FILE) == ImageProcessor("anyres", image_grid_pinpoints=ANYRES_PINPOINTS)


@pytest.mark.parametrize(
    ("aspect_ratio", "mode"), [(None, "crop"), ("square", "crop"), ("pad", "pad"), ("anyres", "anyres")]
)
def test_without_a_file_the_configuration_decides(aspect_ratio: Any, mode: str) -> None:
    pinpoints = ANYRES_PINPOINTS if mode == "anyres" else None
    config = replace(V15, image_aspect_ratio=aspect_ratio, image_grid_pinpoints=pinpoints)
    processor = ImageProcessor.from_config(config)
    assert (processor.mode, processor.tile_size, processor.shortest_edge) == (mode, 336, 336)
    assert processor.image_grid_pinpoints == (pinpoints or ())
    # ... and also where the file is the vision tower's own, in its oldest form.
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "resample": 3}
    assert ImageProcessor.from_config(config, old) == processor


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"size": 336, "crop_size": 336}, "crop"),
        ({"size": None, "crop_size": None, "image_mean": None, "do_resize": None}, "crop"),
        ({"size": {"height": 336, "width": 336}}, "resize"),
        ({"size": {"height": 336, "width": 336}, "do_center_crop": False, "crop_size": 5}, "resize"),
        ({"image_processor_type": "CLIPImageProcessorFast"}, "crop"),
        ({"image_processor_type": "LlavaImageProcessorPil"}, "crop"),
        ({"do_pad": True}, "crop"),
        ({"do_pad": True, "image_processor_type": None}, "pad"),
        ({"do_pad": True, "image_processor_type": "LlavaImageProcessor", "do_center_crop": False}, "pad"),
        ({"unknown": [1, 2], "do_reduce_labels": False, "_valid_processor_keys": ["images"]}, "crop"),
    ],
)
def test_forms_of_the_file(changes: dict[str, Any], mode: str) -> None:
    raw = {**CLIP_FILE, **changes}
    assert ImageProcessor.from_config(V15, raw) == ImageProcessor(mode)
    assert ImageProcessor.from_config(V15, {"image_processor": raw, "patch_size": 14}) == ImageProcessor(mode)


def test_other_values_are_taken_over() -> None:
    changes = {
        "size": 400,
        "resample": 2,
        "image_mean": [0, 0.5, 1],
        "image_std": [1, 2, 3],
        "rescale_factor": 1,
    }
    assert ImageProcessor.from_config(V15, {**CLIP_FILE, **changes}) == ImageProcessor(
        "crop", 336, 400, (), (0.0, 0.5, 1.0), (1.0, 2.0, 3.0), 1.0, 2
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_processor_type", "ViTImageProcessor"),
        ("image_processor_type", 5),
        ("image_processor_type", "LlavaNextImageProcessor"),
        ("do_resize", False),
        ("do_rescale", False),
        ("do_normalize", False),
        ("do_normalize", "yes"),
        ("do_center_crop", False),
        ("do_center_crop", 1),
        ("do_flip_channel_order", True),
        ("pad_size", {"height": 1, "width": 1}),
        ("size", {"shortest_edge": 336, "longest_edge": 672}),
        ("size", {"height": 336, "width": 672}),
        ("size", {"shortest_edge": [336]}),
        ("size", 224),
        ("size", 10**6),
        ("size", 3360),
        ("size", True),
        ("size", "336"),
        ("size", []),
        ("crop_size", 224),
        ("crop_size", -336),
        ("crop_size", {"height": 336}),
        ("resample", 9),
        ("resample", "bicubic"),
        ("rescale_factor", 0),
        ("rescale_factor", float("nan")),
        ("rescale_factor", "1/255"),
        ("image_mean", 0.5),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, None]),
        ("image_mean", [10**400, 0, 0]),
        ("image_std", [0.5, 0, 0.5]),
        ("image_std", [float("inf"), 1, 1]),
    ],
)
def test_settings_that_are_not_honoured_are_refused(key: str, value: Any) -> None:
    with pytest.raises(LlavaError) as caught:
        ImageProcessor.from_config(V15, {**CLIP_FILE, key: value}, where="folder/preprocessor_config.json")
    message = str(caught.value)
    assert message.startswith("folder/preprocessor_config.json: ")
    assert key in message
    assert "\n" not in message


@pytest.mark.parametrize("raw", [[], "x", 5, {"image_processor": []}, {"image_processor": None}])
def test_files_that_are_no_objects_are_refused(raw: Any) -> None:
    with pytest.raises(LlavaError, match="a JSON object is expected"):
        ImageProcessor.from_config(V15, raw)


@pytest.mark.parametrize("pinpoints", [[[336, 672]], [[672, 336], [336, 672]], 5, [5], [["a", "b"]]])
def test_pinpoints_must_be_those_of_the_model(pinpoints: Any) -> None:
    with pytest.raises(LlavaError, match="image_grid_pinpoints differ"):
        ImageProcessor.from_config(V16, {**NEXT_FILE, "image_grid_pinpoints": pinpoints})


def test_anyres_needs_tiles_without_a_crop() -> None:
    with pytest.raises(LlavaError, match="size 400 is not supported"):
        ImageProcessor.from_config(V16, {**NEXT_FILE, "size": {"shortest_edge": 400}})


@pytest.mark.parametrize(
    "processor",
    [
        ImageProcessor(),
        ImageProcessor("crop", shortest_edge=400, resample=2),
        ImageProcessor("pad", image_mean=(0.1, 0.2, 0.3), image_std=(1.0, 2.0, 3.0)),
        ImageProcessor("resize", rescale_factor=1.0),
        ImageProcessor("anyres", image_grid_pinpoints=ANYRES_PINPOINTS),
    ],
    ids=lambda processor: processor.mode,
)
def test_what_is_written_reads_back(processor: ImageProcessor) -> None:
    config = V16 if processor.mode == "anyres" else V15
    raw = json.loads(json.dumps(processor.to_dict()))
    assert ImageProcessor.from_config(config, raw) == processor
    # In an original or Paddle checkpoint too, whose configuration says it as well.
    config = replace(config, image_aspect_ratio={"crop": "square", "resize": None}.get(processor.mode, processor.mode))
    assert ImageProcessor.from_config(config, raw) == processor
