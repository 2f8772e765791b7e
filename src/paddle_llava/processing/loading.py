"""Anything that names or holds a picture becomes an RGB Pillow image, upright and within bounds."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from paddle_llava.errors import LlavaError
from paddle_llava.processing.costly import why_too_costly
from paddle_llava.processing.fetching import ImageLimits, fetch, shown

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray
Notice = Callable[[str], None]

FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF"
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: ImageSource,
    *,
    limits: ImageLimits = ImageLimits(),  # noqa: B008 (frozen)
    allow_private: bool = True,
    notice: Notice | None = None,
) -> Image.Image:
    """The picture of `source`, in RGB, turned as its EXIF orientation says.

    `source` is a path, an http(s) URL, a base64 data URI, a Pillow image, or an array of shape (height,
    width) or (height, width, 1, 3 or 4): uint8, bool, uint16 (0 to 65535) or floating point (0 to 1).
    Transparency is laid on white, more than 8 bits are scaled to 8. Of several frames the first is taken (of
    a Pillow image the one it stands at), and `notice` told so. `allow_private=False` refuses URLs into
    private networks. Raises `LlavaError` naming the source.
    """
    if isinstance(source, Image.Image):
        return _finish(source, "the PIL image", limits, notice)
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source, limits), "the array")
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise LlavaError(f"a picture must be a path, URL, data URI, PIL image or array, found {kind}")
    text = os.fspath(source)
    if not isinstance(text, str):
        raise LlavaError(f"a picture's path must be text, found {text[:100]!r}")
    found = re.match(r"[a-z][a-z0-9+.-]*(?=://)|(?:data|file)(?=:)", text, re.IGNORECASE)
    scheme = found[0].lower() if found and isinstance(source, str) else None
    if scheme is None:
        return decode_image(_read(text, limits.max_bytes), repr(text), limits, notice)
    if scheme == "data":
        name = repr(text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)")
        return decode_image(read_data_uri(text, name), name, limits, notice)
    if scheme not in ("http", "https"):
        raise LlavaError(f"{shown(text)}: {scheme} addresses are not supported, only http(s) and plain paths")
    body, content_type = fetch(text, limits, allow_private=allow_private)
    return decode_image(body, shown(text), limits, notice, content_type)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """`image` in RGB; itself when it is RGB already. Raises `LlavaError` naming `name`.

    Transparency as in `transformers`' `convert_to_rgb`: laid on white.
    """
    if not image.width or not image.height:
        raise LlavaError(f"{name} is empty ({image.width}x{image.height} pixels)")
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_bytes(np.asarray(image), name))
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise LlavaError(f"{name} has pixels of mode {image.mode}, which cannot become RGB") from error


def _to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Grey values as uint8: integers from 16 bits, floats from 0-1 or 0-255, a wider range from its ends."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise LlavaError(f"{name} has pixels that are not finite numbers")
    full = 65535.0 if values.dtype.kind != "f" else 1.0 if high <= 1 else 255.0
    least, greatest = min(low, 0.0), max(high, full)
    return np.rint((values.astype(np.float64) - least) * (255 / (greatest - least))).astype(np.uint8)


def _from_array(array: np.ndarray, limits: ImageLimits) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise LlavaError(f"an array of shape {array.shape} is no picture: (height, width[, 1, 3 or 4]) is")
    _check_size(array.shape[1], array.shape[0], "the array", limits)
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise LlavaError("an array of floating point numbers is no picture unless all are from 0 to 1")
        array = np.rint(array.astype(np.float64) * 255)
    elif kind == "b":
        array = array * np.uint8(255)
    elif kind == "u" and bits == 16:
        array = np.rint(array / 257)
    elif kind != "u" or bits != 8:
        raise LlavaError(f"an array of {array.dtype} is no picture: uint8, bool, uint16 and floats are")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array, np.uint8))


def _read(path: str, max_bytes: int) -> bytes:
    try:
        file = Path(path).expanduser()
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "directory" if stat.S_ISDIR(mode) else "special file"
            raise LlavaError(f"{path!r} is a {kind}, not a picture")
        with file.open("rb") as stream:
            return stream.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise LlavaError(f"{path!r}: no such file") from error
    except OSError as error:
        raise LlavaError(f"{path!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:  # a NUL or a lone surrogate; no home directory for ~
        raise LlavaError(f"{path!r} is no path: {error}") from error


def read_data_uri(uri: str, name: str) -> bytes:
    """The bytes of a base64 data URI of a picture."""
    head, comma, payload = uri.removeprefix(uri[:5]).partition(",")
    media_type, *parameters = head.lower().split(";")
    if not comma or not media_type.startswith("image/") or "base64" not in parameters:
        raise LlavaError(f"{name} is not of the form data:image/…;base64,…")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:
        raise LlavaError(f"{name} is not valid base64: {error}") from error


def _opener(data: bytes) -> Callable[[BytesIO], ImageFile.ImageFile] | None:
    """The Pillow class for what `data` begins with.

    Not `Image.open`: it also warns on stderr of sizes that are checked here, and may be told by others of
    formats that start foreign programs.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile
    if re.match(rb"P[1-6fF]\s", data):
        return PpmImagePlugin.PpmImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data[4:8] == b"ftyp" and re.search(rb"avi[fs]", data[8:64]) and features.check("avif"):
        from PIL import AvifImagePlugin  # since Pillow 11.3

        return AvifImagePlugin.AvifImageFile
    return None


def decode_image(
    data: bytes, name: str, limits: ImageLimits, notice: Notice | None = None, content_type: str = ""
) -> Image.Image:
    """The picture that `data` is, as `load_image` gives it; `name` is for messages."""
    if not data:
        raise LlavaError(f"{name} is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise LlavaError(f"{name} is larger than {limits.max_bytes / 2**20:g} MiB")
    opener = _opener(data)
    if opener is None and content_type and not content_type.startswith("image/"):
        raise LlavaError(f"{name} returned {content_type[:60]!r}, not a picture")
    if opener is None:
        raise LlavaError(f"{name} is not a picture of a known format ({FORMATS})")
    if costly := why_too_costly(data):
        raise LlavaError(f"{name} {costly}, which would take too long to decode; save it anew as an ordinary one")
    try:
        image = opener(BytesIO(data))
    except Exception as error:  # hostile bytes can make a decoder raise anything
        raise _undecodable(name, error) from error
    return _finish(image, name, limits, notice)


def _finish(image: Image.Image, name: str, limits: ImageLimits, notice: Notice | None) -> Image.Image:
    """Decode within bounds, convert, turn upright."""
    _check_size(image.width, image.height, name, limits)
    try:
        several = getattr(image, "is_animated", False) and image.format != "MPO"
        image.load()
    except Exception as error:
        raise _undecodable(name, error) from error
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # broken EXIF says nothing
        orientation = None
    if several and notice is not None:
        notice(f"{name} has several frames; only frame {image.tell() + 1} is used")
    rgb = to_rgb(image, name)
    if orientation not in UPRIGHT:
        return rgb
    upright = rgb.transpose(UPRIGHT[orientation])
    upright.info = {}  # or its EXIF would turn it again, next time
    return upright


def _undecodable(name: str, error: Exception) -> LlavaError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return LlavaError(f"{name} is damaged and cannot be decoded: {reason}")


def _check_size(width: int, height: int, name: str, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise LlavaError(f"{name} has {width}x{height} pixels, more than the {limits.max_pixels:,} allowed")
