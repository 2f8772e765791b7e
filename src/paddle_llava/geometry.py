"""How a picture of a given size becomes a number of image features.

The processor (how many placeholders) and the model (how the features are laid out) both ask
`ImageLayout`, so they cannot disagree. Sizes are (height, width) throughout; integers only.

Source: LLaVA-NeXT (`anyres`, `spatial_unpad`), as `transformers` implements it. Unpadding uses exact
integer division, which equals `transformers`' `int(round(x, 7))`; the original's `int(x)` loses a row or
column to floating point error at a few sizes (55x176 is one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Size = tuple[int, int]


def select_best_resolution(image_size: Size, pinpoints: tuple[Size, ...]) -> Size:
    """The pinpoint that keeps most of the picture's pixels, then wastes least; the first one of equals."""
    height, width = image_size
    best, best_effective, best_wasted = pinpoints[0], 0, math.inf
    for target_height, target_width in pinpoints:
        scale = min(target_width / width, target_height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        wasted = target_height * target_width - effective
        if effective > best_effective or (effective == best_effective and wasted < best_wasted):
            best, best_effective, best_wasted = (target_height, target_width), effective, wasted
    return best


@dataclass(frozen=True)
class ImageLayout:
    """Features of one picture: a base view, and for `anyres` the rows of its unpadded high-resolution view.

    `tiles` is the number of square pixel tiles that the vision tower sees (1 without `anyres`); `grid` is
    (rows, columns) of the tiles after the first; `top`/`left` is how many feature rows / columns of padding
    are cut from each side; `rows` x `columns` remain, each row followed by one `image_newline`.
    """

    base: int
    grid: Size = (0, 0)
    top: int = 0
    left: int = 0
    rows: int = 0
    columns: int = 0
    newlines: bool = False

    @property
    def tiles(self) -> int:
        return 1 + self.grid[0] * self.grid[1]

    @property
    def num_features(self) -> int:
        return self.base + self.rows * (self.columns + self.newlines)


def image_layout(
    image_size: Size,
    tile_size: int,
    patch_size: int,
    pinpoints: tuple[Size, ...] | None = None,
    *,
    unpad: bool = True,
    keep_cls: bool = False,
) -> ImageLayout:
    """The layout of a picture of `image_size` pixels.

    Without `pinpoints` (v1.5) every picture is one tile. With them (v1.6, `anyres`) the features are the base
    view's followed by the tiles', unpadded and with newlines when `unpad` (`spatial_unpad`), else tile after
    tile (`flat`). At extreme aspect ratios (10x513) unpadding leaves no row or no column: without a row only
    the base view remains; without a column each row still holds its newline.
    """
    side = tile_size // patch_size
    base = side * side + keep_cls
    if pinpoints is None:
        return ImageLayout(base)
    target_height, target_width = select_best_resolution(image_size, pinpoints)
    grid = (target_height // tile_size, target_width // tile_size)
    rows, columns = grid[0] * side, grid[1] * side
    if not unpad:
        return ImageLayout(base, grid, rows=grid[0] * grid[1], columns=base)
    height, width = image_size
    if width * rows > columns * height:
        top, left = (rows - height * columns // width) // 2, 0
    else:
        top, left = 0, (columns - width * rows // height) // 2
    return ImageLayout(base, grid, top, left, rows - 2 * top, columns - 2 * left, newlines=True)
