"""Draw `views.jpg`: what the vision tower sees of one photograph in each way of preprocessing.

.venv/bin/python docs/images/make_views.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import paddle_llava
from paddle_llava.config import ANYRES_PINPOINTS
from paddle_llava.geometry import image_layout
from paddle_llava.processing.images import CLIP_MEAN, CLIP_STD, ImageProcessor, Mode
from paddle_llava.processing.loading import load_image

PHOTO = Path(paddle_llava.__file__).parent / "demo" / "photos" / "china.jpg"
SIDE, GAP, TOP = 200, 6, 30
GREY = (120, 120, 120)


def views(photo: Image.Image, mode: Mode) -> list[Image.Image]:
    """The tiles of `photo`, back from normalised floats to colours."""
    pinpoints = ANYRES_PINPOINTS if mode == "anyres" else ()
    pixels, _ = ImageProcessor(mode, image_grid_pinpoints=pinpoints)([photo])
    colours = pixels.transpose(0, 2, 3, 1) * np.array(CLIP_STD) + np.array(CLIP_MEAN)
    return [Image.fromarray((tile * 255).round().clip(0, 255).astype(np.uint8)) for tile in colours]


def main() -> None:
    photo = load_image(PHOTO)
    layout = image_layout((photo.height, photo.width), 336, 14, ANYRES_PINPOINTS)
    sheet = Image.new("RGB", (1232, 490), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)

    def put(image: Image.Image, x: int, y: int, title: str = "", width: int = SIDE) -> None:
        draw.text((x, y - 22), title, fill="black", font=font)
        sheet.paste(image.resize((width, SIDE)), (x, y))

    put(photo, 10, TOP, f"the photograph, {photo.width}x{photo.height}", width=300)
    put(views(photo, "crop")[0], 340, TOP, "crop: 576 features")
    put(views(photo, "pad")[0], 340, TOP + SIDE + 40, "pad: 576 features")
    base, *tiles = views(photo, "anyres")
    put(base, 570, TOP, f"anyres: base view, {layout.base} features")
    left, whole = 814, 2 * SIDE + GAP
    for number, tile in enumerate(tiles):
        put(tile, left + number % 2 * (SIDE + GAP), TOP + number // 2 * (SIDE + GAP))
    kept = f"{layout.rows} rows x ({layout.columns} + 1) = {layout.rows * (layout.columns + 1)}"
    draw.text((left, TOP - 22), f"and {len(tiles)} tiles, {kept} features", fill="black", font=font)
    cut = whole * layout.top // (layout.rows + 2 * layout.top)
    for y in (TOP, TOP + whole - cut):  # the rows that unpadding cuts
        for x in range(left, left + whole - cut, 12):
            draw.line((x, y + cut, x + cut, y), fill=GREY)
        draw.rectangle((left, y, left + whole - 1, y + cut), outline=GREY)
    sheet.save(Path(__file__).with_name("views.jpg"), quality=88)


if __name__ == "__main__":
    main()
