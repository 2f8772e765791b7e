"""Pictures become the square pixel tiles that the vision tower sees.

Four ways, each equal to its reference bit for bit (Pillow's resampling, then a table from the 256 byte values
to normalised floats):

- `crop`: the shortest edge is resized, the middle is cut out (`CLIPImageProcessor`; the `-hf` v1.5 files);
- `pad`: padded to a square in the mean colour, then resized (original v1.5, and `do_pad` of
  `LlavaImageProcessor`);
- `resize`: made square regardless of the aspect ratio;
- `anyres`: a base view made like `resize`, then the tiles of a larger view padded in black (v1.6).

Source: `transformers`' image processors on Pillow, and LLaVA's `expand2square` and `process_anyres_image`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from PIL import Image

from paddle_llava.config import ImageAspectRatio, LlavaConfig
from paddle_llava.errors import LlavaError
from paddle_llava.geometry import Size, select_best_resolution
from paddle_llava.processing.boxes import Box, padded_frame
from paddle_llava.processing.loading import to_rgb

Mode = Literal["crop", "pad", "resize", "anyres"]
Color = tuple[float, float, float]

CLIP_MEAN: Color = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Color = (0.26862954, 0.26130258, 0.27577711)

PROCESSOR_TYPES = (
    "CLIPImageProcessor",
    "CLIPFeatureExtractor",
    "LlavaImageProcessor",
    "LlavaNextImageProcessor",
)
KNOWN_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb"}

# Strips that would need gigabytes on their way to one tile are shortened first; no photograph comes near.
MAX_CROPPED_ASPECT = 128
MAX_PADDED_SIDE = 10_000


@dataclass(frozen=True)
class ImageProcessor:
    """The preprocessing settings of a checkpoint, and the one function that applies them.

    `tile_size` is the side of a tile in pixels; `shortest_edge` the edge that `crop`, `pad` and `resize` go
    to before the middle `tile_size` x `tile_size` is cut out; `resample` one of Pillow's filters (3 is
    bicubic). `image_grid_pinpoints` are (height, width), for `anyres` only.
    """

    mode: Mode = "crop"
    tile_size: int = 336
    shortest_edge: int = 336
    image_grid_pinpoints: tuple[Size, ...] = ()
    image_mean: Color = CLIP_MEAN
    image_std: Color = CLIP_STD
    rescale_factor: float = 1 / 255
    resample: int = 3

    def __call__(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """The tiles of `images`, image after image, an image's base view first.

        Returns `pixel_values`, float32 [sum of the images' tiles, 3, tile_size, tile_size], and
        `image_sizes`, int64 [number of images, 2], the pictures' own (height, width). Raises `LlavaError` for
        an empty picture.
        """
        views = [self._tiles(to_rgb(image, f"image {index + 1}")) for index, image in enumerate(images)]
        tiles = np.concatenate(views) if views else np.empty((0, self.tile_size, self.tile_size, 3), np.uint8)
        pixel_values = np.empty((len(tiles), 3, self.tile_size, self.tile_size), np.float32)
        for channel, table in enumerate(self._normalized):
            np.take(table, tiles[..., channel], out=pixel_values[:, channel], mode="clip")
        sizes = [(image.height, image.width) for image in images]
        return pixel_values, np.array(sizes, np.int64).reshape(-1, 2)

    @property
    def image_aspect_ratio(self) -> ImageAspectRatio:
        """What an original `config.json` says of `mode`; `resize` stands in the preprocessor's file alone."""
        return "square" if self.mode == "crop" or self.mode == "resize" else self.mode

    def frame(self, width: int, height: int) -> Box:
        """What of a picture the fractions in an answer are of, in its pixels.

        The middle square that `crop` leaves, or the whole picture with `resize`: nothing else is shown. Otherwise the
        padded square, which LLaVA's training data speaks of whichever way pictures are cut into tiles.
        """
        if self.mode in ("pad", "anyres"):
            return padded_frame(width, height)
        across, down = (width, height) if self.mode == "resize" else (min(width, height),) * 2
        x, y = (side * self.tile_size / self.shortest_edge / 2 for side in (across, down))
        return width / 2 - x, height / 2 - y, width / 2 + x, height / 2 + y

    @cached_property
    def _normalized(self) -> np.ndarray:
        """float32 [3, 256]: what each byte of each channel becomes, rounded where the reference rounds."""
        rescaled = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = (np.array(color, np.float32)[:, None] for color in (self.image_mean, self.image_std))
        return (rescaled - mean) / std

    def _tiles(self, image: Image.Image) -> np.ndarray:
        """uint8 [tiles, tile_size, tile_size, 3]."""
        if self.mode == "anyres":
            return self._anyres_tiles(image)
        if self.mode == "pad":
            image = self._pad_to_square(image)
        width = height = edge = self.shortest_edge
        if self.mode == "crop":
            short, long = sorted(image.size)
            longest = MAX_CROPPED_ASPECT * short
            image = _middle(image, longest + (long - longest) % 2)  # the middle stays where it is
            width, height = edge * image.width // short, edge * image.height // short
        image = image.resize((width, height), self.resample)
        return np.asarray(_middle(image, self.tile_size))[None]

    def _pad_to_square(self, image: Image.Image) -> Image.Image:
        if image.width != image.height and max(image.size) > MAX_PADDED_SIDE:
            scale = MAX_PADDED_SIDE / max(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), self.resample)
        side = max(image.size)
        red, green, blue = (int(mean * 255) for mean in self.image_mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def _anyres_tiles(self, image: Image.Image) -> np.ndarray:
        tile = self.tile_size
        target = select_best_resolution((image.height, image.width), self.image_grid_pinpoints)
        height, width = fitted_size((image.height, image.width), target)
        top, left = (target[0] - height) // 2, (target[1] - width) // 2
        padded = np.zeros((*target, 3), np.uint8)
        padded[top : top + height, left : left + width] = np.asarray(image.resize((width, height), self.resample))
        rows, columns = target[0] // tile, target[1] // tile
        grid = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
        base = np.asarray(image.resize((tile, tile), self.resample))
        return np.concatenate([base[None], grid])

    @classmethod
    def from_config(
        cls,
        config: LlavaConfig,
        preprocessor: dict[str, Any] | None = None,
        *,
        where: str = "preprocessor_config.json",
    ) -> ImageProcessor:
        """The settings of a checkpoint.

        `preprocessor` is its `preprocessor_config.json`, or the `processor_config.json` of transformers 5, or
        None for original and Paddle checkpoints without either: they follow `config.image_aspect_ratio`, with
        CLIP's mean and deviation. Where both speak, as in an original checkpoint with CLIP's own file beside
        it, `pad` and `anyres` of the configuration hold. Raises `LlavaError` naming `where` and the key for a
        setting that is not honoured here or contradicts the configuration.
        """
        raw: Any = {} if preprocessor is None else preprocessor
        if isinstance(raw, dict):
            raw = raw.get("image_processor", raw)
        if not isinstance(raw, dict):
            raise LlavaError(f"{where}: a JSON object is expected, found {type(raw).__name__}")
        # For transformers too, a null is as good as an absent key.
        raw = {key: value for key, value in raw.items() if value is not None}
        _check_steps(raw, where)
        mode, edge = _read_mode(raw, config, where)
        _check_sizes(raw, mode, edge, config, where)

        mean, std = (
            _read_color(raw, "image_mean", CLIP_MEAN, where),
            _read_color(raw, "image_std", CLIP_STD, where),
        )
        if min(std) < 1e-6:
            raise LlavaError(f"{where}: image_std must be positive, found {list(std)}")
        factor = raw.get("rescale_factor", 1 / 255)
        if not _is_number(factor) or factor <= 0:
            raise LlavaError(f"{where}: rescale_factor must be a positive number, found {factor!r}")
        resample = raw.get("resample", 3)
        if type(resample) is not int or resample not in range(6):
            raise LlavaError(f"{where}: resample must be one of Pillow's filters, 0 to 5, found {resample!r}")
        tile, pinpoints = config.vision.image_size, config.image_grid_pinpoints or ()
        return cls(mode, tile, edge, pinpoints, mean, std, float(factor), resample)

    def to_dict(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that `transformers` 4 and 5 and `from_config` read back to this.

        It is the same for every layout: readers of the others take the aspect ratio from `config.json`.
        """
        kinds = {"pad": "LlavaImageProcessor", "anyres": "LlavaNextImageProcessor"}
        edge = self.shortest_edge
        settings: dict[str, Any] = {
            "crop_size": {"height": self.tile_size, "width": self.tile_size},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.image_mean),
            "image_processor_type": kinds.get(self.mode, "CLIPImageProcessor"),
            "image_std": list(self.image_std),
            "processor_class": "LlavaNextProcessor" if self.mode == "anyres" else "LlavaProcessor",
            "resample": self.resample,
            "rescale_factor": self.rescale_factor,
            "size": {"height": edge, "width": edge} if self.mode == "resize" else {"shortest_edge": edge},
        }
        if self.mode in kinds:
            settings["do_pad"] = True
        if self.mode == "anyres":
            settings["image_grid_pinpoints"] = [list(pinpoint) for pinpoint in self.image_grid_pinpoints]
        return settings


def fitted_size(image_size: Size, target: Size) -> Size:
    """The largest (height, width) of the picture's aspect ratio inside `target`, one side rounded up.

    In floating point, like the reference (`get_patch_output_size`), so that the rounding falls alike.
    """
    (height, width), (target_height, target_width) = image_size, target
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        return min(math.ceil(height * scale_width), target_height), target_width
    return target_height, min(math.ceil(width * scale_height), target_width)


def _middle(image: Image.Image, side: int) -> Image.Image:
    """At most `side` x `side` pixels from the middle; of an odd rest, one more is cut right and below."""
    width, height = min(image.width, side), min(image.height, side)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _check_steps(raw: dict[str, Any], where: str) -> None:
    for key, value in raw.items():
        if key in KNOWN_STEPS and not isinstance(value, bool):
            raise LlavaError(f"{where}: {key} must be true or false, found {value!r}")
        if key in ("do_resize", "do_rescale", "do_normalize") and not value:
            raise LlavaError(f"{where}: {key} false is not supported, the vision tower needs this step")
        unknown_step = key.startswith("do_") and key not in KNOWN_STEPS
        if value and (unknown_step or key in ("pad_size", "size_divisor", "use_square_size")):
            raise LlavaError(f"{where}: {key} is not supported")


def _read_mode(raw: dict[str, Any], config: LlavaConfig, where: str) -> tuple[Mode, int]:
    """The mode, and the edge that pictures are resized to."""
    key = "image_processor_type" if "image_processor_type" in raw else "feature_extractor_type"
    kind = str(raw.get(key, "CLIPImageProcessor" if config.image_aspect_ratio else "LlavaImageProcessor"))
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if kind not in PROCESSOR_TYPES:
        raise LlavaError(f"{where}: {key} {raw[key]!r} is not supported ({', '.join(PROCESSOR_TYPES)})")
    edge, both = read_size(raw, "size", config.vision.image_size, where)
    if config.image_grid_pinpoints:
        return "anyres", edge
    if kind == "LlavaNextImageProcessor":
        raise LlavaError(f"{where}: {key} {kind} cuts tiles, but the model has no image_grid_pinpoints")
    # CLIPImageProcessor's own do_pad only evens out the pictures of a batch, which are even already.
    if config.image_aspect_ratio == "pad" or (kind == "LlavaImageProcessor" and raw.get("do_pad")):
        return "pad", edge
    return "resize" if both else "crop", edge


def _check_sizes(raw: dict[str, Any], mode: Mode, edge: int, config: LlavaConfig, where: str) -> None:
    tile = config.vision.image_size
    crops = raw.get("do_center_crop", True)
    if not crops and mode == "crop":
        raise LlavaError(f"{where}: do_center_crop false leaves pictures that are not square")
    result = read_size(raw, "crop_size", tile, where)[0] if crops else edge
    if result != tile:
        key = "crop_size" if crops else "size"
        raise LlavaError(f"{where}: {key} is {result}, but the vision tower takes {tile}x{tile} pictures")
    if not tile <= edge <= 4 * tile or (mode == "anyres" and edge != tile):
        raise LlavaError(f"{where}: size {edge} is not supported with tiles of {tile}x{tile} ({mode})")
    pinpoints = [list(pinpoint) for pinpoint in config.image_grid_pinpoints or ()]
    if pinpoints and raw.get("image_grid_pinpoints", pinpoints) != pinpoints:
        raise LlavaError(f"{where}: image_grid_pinpoints differ from those of the model, {pinpoints}")


def read_size(raw: dict[str, Any], key: str, default: int | None, where: str) -> tuple[int, bool]:
    """The edge that `raw[key]` asks for, and whether both sides become it regardless of the aspect ratio."""
    value = raw.get(key, default)
    both = isinstance(value, dict) and value.keys() == {"height", "width"} and value["height"] == value["width"]
    if isinstance(value, dict):
        value = value["height"] if both else value["shortest_edge"] if value.keys() == {"shortest_edge"} else None
    if type(value) is not int or not 0 < value < 2**16:
        raise LlavaError(f"{where}: {key} must be one square size in pixels, found {raw.get(key, value)!r}")
    return value, both


def _read_color(raw: dict[str, Any], key: str, default: Color, where: str) -> Color:
    value = raw.get(key, default)
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(_is_number, value)):
        raise LlavaError(f"{where}: {key} must be three numbers, found {value!r}")
    red, green, blue = map(float, value)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6
