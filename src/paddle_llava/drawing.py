"""An answer's boxes drawn into its picture, and the file that this makes."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from paddle_llava.errors import LlavaError
from paddle_llava.processing.boxes import Box, draw_boxes

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def picture_path(name: str, asked_by: str) -> Path:
    """The path to draw to. Raises `LlavaError`, naming who asked, when its ending is not that of a picture."""
    path = Path(os.path.expanduser(name))
    if path.suffix.lower() not in FORMATS:
        raise LlavaError(f"{asked_by}: {name!r} must be the name of a picture that ends in {', '.join(FORMATS)}")
    return path


def write_drawing(path: Path, image: Image, boxes: Sequence[Box], asked_by: str, *, anew: bool = False) -> None:
    """A copy of `image` with `boxes` (in its pixels) framed, several of them numbered.

    With `anew` the file must not exist. Raises `LlavaError` when it cannot be written.
    """
    labels = [str(number) for number in range(1, len(boxes) + 1)] if len(boxes) > 1 else None
    drawn, encoded = draw_boxes(image, boxes, labels), io.BytesIO()
    try:
        drawn.save(encoded, FORMATS[path.suffix.lower()])  # before the file is touched: not every size can be encoded
        with path.open("xb" if anew else "wb") as file:
            file.write(encoded.getbuffer())
    except FileExistsError:
        raise LlavaError(f"{asked_by}: {str(path)!r} already exists; choose another name") from None
    except (OSError, ValueError) as error:
        raise LlavaError(f"{asked_by}: {str(path)!r} cannot be written ({error})") from None


def free_path() -> Path:
    """`boxes.png` in the working folder, or `boxes-2.png` and so on when that is taken."""
    names = ["boxes.png", *(f"boxes-{number}.png" for number in range(2, 1000))]
    return next((path for name in names if not (path := Path(name)).exists()), Path(names[-1]))
