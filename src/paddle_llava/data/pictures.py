"""Pictures of training records: those behind URLs kept on disk, and the size of any without decoding it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from paddle_llava.errors import LlavaError
from paddle_llava.geometry import Size
from paddle_llava.processing.fetching import ImageLimits, PassingFault, fetch, shown
from paddle_llava.processing.loading import EXIF_ORIENTATION, load_image

HEADER_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LIMITS = ImageLimits()
PAUSES = (1.0, 3.0)
"""Seconds before a URL is asked again, when the network or the server failed."""
SIDEWAYS = (5, 6, 7, 8)


def cache_folder() -> Path:
    """Where pictures behind URLs are kept: `paddle-llava/images` in `$XDG_CACHE_HOME`, by default `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "paddle-llava" / "images"


def local_source(source: str) -> str:
    """`source`, or for an http(s) URL the path of its copy on disk, downloaded at the first time.

    A copy is named after the URL's SHA-256 and appears whole or not at all, also when several processes ask at once.
    A fault that may pass is waited for a little: hours of training, or a record, may depend on it. Raises `LlavaError`
    when the URL gives no picture within the limits of `load_image`, or the copy cannot be kept.
    """
    if not source.lower().startswith(("http://", "https://")):
        return source
    digest = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
    path = cache_folder() / digest[:2] / digest
    if os.path.isfile(path):
        return str(path)
    body = _fetch_patiently(source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            try:
                file.write(body)
                file.close()
                load_image(file.name)
                os.replace(file.name, path)
            except BaseException as error:
                os.unlink(file.name)
                if isinstance(error, LlavaError):
                    raise LlavaError(str(error).replace(repr(file.name), shown(source))) from None
                raise
    except OSError as error:
        raise LlavaError(f"{shown(source)} cannot be kept in {path.parent}: {error.strerror or error}") from error
    return str(path)


def _fetch_patiently(url: str) -> bytes:
    for pause in PAUSES:
        with suppress(PassingFault):
            return fetch(url, LIMITS)[0]
        time.sleep(pause)
    return fetch(url, LIMITS)[0]


def picture_size(source: str) -> Size:
    """(height, width) in pixels of what `load_image` makes of `source`, from the file's header where that tells."""
    local = local_source(source)
    path, size = os.path.expanduser(local), None
    if os.path.isfile(path):  # opening a pipe would wait for its other end
        with suppress(OSError), open(path, "rb") as file:
            size = _header_size(file)
    if size is None:
        image = load_image(local)
        size = image.height, image.width
    return size


def _header_size(file: BinaryIO) -> Size | None:
    """The size of the picture in `file` once it is upright, None when its header does not tell."""
    try:
        with Image.open(file, formats=HEADER_FORMATS) as image:
            width, height = image.size
            # Pillow turns TIFF by itself.
            if image.format != "TIFF" and image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS:
                width, height = height, width
            return height, width
    except Exception:  # hostile bytes can make a decoder raise anything
        return None
