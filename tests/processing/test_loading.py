"""Every kind of source, every mode and format, and every way in which a file can be bad."""

from __future__ import annotations

import base64
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from paddle_llava.errors import LlavaError
from paddle_llava.processing.costly import jpeg_scans, tiff_strips
from paddle_llava.processing.fetching import ImageLimits
from paddle_llava.processing.loading import load_image

HEIGHT, WIDTH = 12, 20
SLOPE = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
GREY = SLOPE.astype(np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], np.full_like(GREY, 200)], -1)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def written(tmp_path: Path, data: bytes, name: str = "picture") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def refusal(source: Any, **options: Any) -> str:
    """The message of the error that `source` gives: always one printable line."""
    with pytest.raises(LlavaError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


# Formats

LOSSLESS = [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})]
LOSSY = [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("MPO", {"quality": 95})]
if features.check("avif"):
    LOSSY.append(("AVIF", {"quality": 95}))


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_formats(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, encoded(Image.fromarray(COLOURS), kind, **options))
    image = load_image(path)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), COLOURS)


@pytest.mark.parametrize(("kind", "options"), LOSSY)
def test_lossy_formats(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    path = written(tmp_path, encoded(Image.fromarray(smooth), kind, **options))
    image = load_image(path)
    assert image.mode == "RGB"
    assert abs(np.asarray(image).astype(int) - smooth).max() <= 6


def test_gif_and_palettes(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOURS).quantize(64)
    for kind in ("GIF", "PNG"):
        path = written(tmp_path, encoded(palette, kind))
        assert np.array_equal(np.asarray(load_image(path)), np.asarray(palette.convert("RGB")))


def test_a_path_may_be_text_and_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = written(tmp_path, encoded(Image.fromarray(COLOURS), "PNG"))
    for source in (str(path), "~/picture", Path("~/picture")):
        assert np.array_equal(np.asarray(load_image(source)), COLOURS)


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/png;charset=utf-8;BASE64,"])
def test_data_uri(head: str) -> None:
    payload = base64.encodebytes(encoded(Image.fromarray(COLOURS), "PNG")).decode()  # with line ends
    assert np.array_equal(np.asarray(load_image(head + payload)), COLOURS)


# Modes


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "YCbCr", "HSV"])
def test_plain_modes_convert_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_on_white() -> None:
    colour, grey, alpha = (200, 100, 0), 120, 102
    with_palette = Image.new("PA", (2, 1), (1, alpha))
    with_palette.putpalette([0, 0, 0, *colour])
    rgba, la = Image.new("RGBA", (2, 1), (*colour, alpha)), Image.new("LA", (2, 1), (grey, alpha))
    for image in (rgba, la, with_palette, rgba.convert("RGBa"), la.convert("La")):
        shown = [grey] * 3 if image.mode in ("LA", "La") else colour
        expected = [round((c * alpha + 255 * (255 - alpha)) / 255) for c in shown]
        assert abs(np.asarray(load_image(image))[0, 0].astype(int) - expected).max() <= 2, image.mode


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_becomes_white(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (4, 2), 0)
    image.paste(1 if mode in "P1" else 100 if mode == "L" else (100, 100, 100), (0, 0, 2, 2))
    if mode == "P":
        image.putpalette([0, 0, 0, 100, 100, 100])
    clear = (0, 0, 0) if mode == "RGB" else 0
    data = encoded(image, "PNG", transparency=clear)
    pixels = np.asarray(load_image(written(tmp_path, data)))
    assert pixels[0, 3].tolist() == [255, 255, 255]
    assert pixels[0, 0].tolist() == [255 if mode == "1" else 100] * 3


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    red, green, blue = np.asarray(load_image(written(tmp_path, data)))[8, 8].tolist()
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled(mode: str, tmp_path: Path) -> None:
    values = (SLOPE * 257).astype(np.uint16)
    raw = values.astype(">u2" if mode == "I;16B" else "<u2" if mode == "I;16" else "<i4").tobytes()
    image = Image.frombytes(mode, (WIDTH, HEIGHT), raw)
    expected = np.repeat(np.rint(values / 257).astype(np.uint8)[..., None], 3, -1)
    assert np.array_equal(np.asarray(load_image(image)), expected)
    kind = "PNG" if mode == "I;16" else "TIFF"
    assert np.array_equal(np.asarray(load_image(written(tmp_path, encoded(image, kind)))), expected)


def test_wider_greys_are_stretched() -> None:
    image = Image.fromarray(np.array([[-1000, 0, 99000]], np.int32))
    image = Image.fromarray(np.asarray(image).repeat(2, 0))
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, round(255 / 100), 255]
    constant = Image.fromarray(np.full((2, 2), 70000, np.int32))
    assert np.asarray(load_image(constant)).min() == 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 127.6, 255.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
    ],
)
def test_float_pictures(values: list[float], expected: list[int], tmp_path: Path) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    for source in (image, written(tmp_path, encoded(image, "TIFF"))):
        assert np.asarray(load_image(source))[0, :, 0].tolist() == expected


def test_pixels_that_are_not_finite() -> None:
    image = Image.fromarray(np.array([[0, np.nan]], np.float32))
    assert refusal(image) == "the PIL image has pixels that are not finite numbers"


def test_a_mode_that_pillow_cannot_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    assert refusal(Image.new("LAB", (3, 3))) == "the PIL image has pixels of mode LAB, which cannot become RGB"


# Orientation and frames


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"tiffinfo": exif} if kind == "TIFF" else {"exif": exif}
    data = encoded(Image.fromarray(COLOURS), kind, lossless=True, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    once = load_image(written(tmp_path, data))
    assert np.array_equal(np.asarray(once), expected)
    assert np.array_equal(np.asarray(load_image(once)), expected), "turned a second time"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"rubbish"])
def test_broken_exif_is_no_orientation(exif: bytes, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(COLOURS), "PNG", exif=exif)
    assert load_image(written(tmp_path, data)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_used_and_said(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    path = written(tmp_path, data)
    notices: list[str] = []
    pixels = np.asarray(load_image(path, notice=notices.append))
    assert pixels[4, 4].tolist() == [255, 0, 0]
    assert notices == [f"{str(path)!r} has several frames; only frame 1 is used"]
    assert load_image(path).size == (8, 8)


def test_a_pillow_image_stays_at_its_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    image = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    notices: list[str] = []
    assert np.asarray(load_image(image, notice=notices.append))[4, 4].tolist() == [0, 255, 0]
    assert notices == ["the PIL image has several frames; only frame 2 is used"]


def test_stills_and_stereo_pictures_are_not_called_animated(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    stereo = encoded(image, "MPO", save_all=True, append_images=[image])
    for data in (encoded(image, "GIF"), encoded(image, "PNG"), stereo):
        load_image(written(tmp_path, data), notice=pytest.fail)


# Arrays


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
@pytest.mark.parametrize("dtype", ["uint8", "bool", "uint16", ">u2", "float16", "float32", "float64"])
def test_arrays(dtype: str, channels: tuple[int, ...]) -> None:
    kind = np.dtype(dtype)
    full = {"b": 1, "f": 1.0}.get(kind.kind, 255 if kind.itemsize == 1 else 65535)
    array = np.zeros((2, 3, *channels), kind)
    array[0] = full
    array[..., 3:] = full  # opaque
    image = load_image(array)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert np.asarray(image)[:, 0].tolist() == [[255] * 3, [0] * 3]


def test_arrays_round_to_the_nearest_byte_and_keep_their_memory() -> None:
    assert np.asarray(load_image(np.array([[0.5, 0.001]])))[0, :, 0].tolist() == [128, 0]
    assert np.asarray(load_image(np.array([[300, 65535]], np.uint16)))[0, :, 0].tolist() == [1, 255]
    array = np.zeros((4, 6, 3), np.uint8)
    assert load_image(array[::2, ::-1]).size == (6, 2)
    image = load_image(array)
    image.putpixel((0, 0), (9, 9, 9))
    assert not array.any()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.int64),
        np.zeros((3, 4), np.complex64),
        np.zeros((3, 4), object),
        np.zeros((3, 4), "S3"),
        np.zeros(4, np.uint8),
        np.zeros((3, 4, 2), np.uint8),
        np.zeros((1, 3, 4, 3), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.full((3, 4), 1.1),
        np.full((3, 4), -0.1),
        np.full((3, 4), np.nan),
        np.broadcast_to(np.zeros(1, np.uint8), (20_000, 20_000)),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    assert "array" in refusal(array)


# Bad input


@pytest.mark.parametrize("source", [None, 5, b"bytes", ["a.png"], {"url": "x"}, 1.5])
def test_things_that_are_no_source(source: Any) -> None:
    assert type(source).__name__ in refusal(source)


def test_a_path_of_bytes() -> None:
    class BytesPath:
        def __fspath__(self) -> bytes:
            return b"picture.png"

    assert "must be text" in refusal(BytesPath())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "is a directory"),
        ("no/such/picture.png", "no such file"),
        ("line\nend.png", "no such file"),
        ("nul\0.png", "is no path"),
        ("\udc80\ud800.png", ""),
        ("x" * 300, "cannot be read"),
        ("~nobody-of-this-name/x.png", "is no path"),
        ("/dev/null", "special file"),
        ("file:///etc/passwd", "file addresses are not supported"),
        ("FILE:picture.png", "file addresses are not supported"),
        ("ftp://host/picture.png", "ftp addresses are not supported"),
        ("s3://user:secret@bucket/picture.png", "s3 addresses are not supported"),
        ("data:image/png;base64", "is not of the form"),
        ("data:image/png,abc", "is not of the form"),
        ("data:text/html;base64,AAAA", "is not of the form"),
        ("data:;base64,AAAA", "is not of the form"),
        ("data:image/png;base64,!!!!", "is not valid base64"),
        ("data:image/png;base64,AAA", "is not valid base64"),
        ("data:image/png;base64,ääää", "is not valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,AAAA", "not a picture of a known format"),
    ],
)
def test_names_that_lead_nowhere(source: str, reason: str, tmp_path: Path) -> None:
    message = refusal(source)
    assert reason in message
    assert "secret" not in message


def test_long_data_uris_are_shortened() -> None:
    message = refusal("data:image/png;base64," + "A" * 100_000)
    assert "AAA… (100022 characters)" in message
    assert len(message) < 200


def test_folders_and_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(tmp_path) == f"{str(tmp_path)!r} is a directory, not a picture"
    os.mkfifo(tmp_path / "pipe")
    assert "special file" in refusal(tmp_path / "pipe")
    path = written(tmp_path, b"")
    assert refusal(path) == f"{str(path)!r} is empty (0 bytes)"

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "picture")

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(path) == f"{str(path)!r} cannot be read: Permission denied"


FOREIGN = {
    "html": b"<!DOCTYPE html><html></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "pdf": b"%PDF-1.7\n",
    "psd": b"8BPS\0\1" + bytes(50),
    "fits": b"SIMPLE  =                    T" + bytes(50),
    "ico": b"\0\0\1\0\1\0" + bytes(50),
    "heic": b"\0\0\0\x18ftypheic" + bytes(50),
    "text": b"P6",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_never_opened(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, FOREIGN[kind], f"picture.{kind}")
    assert "not a picture of a known format (JPEG, PNG, WebP" in refusal(path)


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (10_001, 10_000)])
def test_bombs_are_refused_by_their_declared_size(size: tuple[int, int], tmp_path: Path) -> None:
    path = written(tmp_path, png_claiming(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning would be a second line
        assert f"has {size[0]}x{size[1]} pixels, more than the 100,000,000 allowed" in refusal(path)


def test_jpegs_of_many_scans_are_refused() -> None:
    """Each costs a pass through the whole picture: a few KB of them would cost hours."""
    sound = encoded(Image.fromarray(np.tile(GREY, (20, 20))), "JPEG", progressive=True, quality=90)
    last = sound.rindex(b"\xff\xda")
    with_scans = sound[:-2] + sound[last:-2] * 100 + sound[-2:]
    assert 2 < jpeg_scans(sound) < 20
    assert load_image(f"data:image/jpeg;base64,{base64.b64encode(sound).decode()}").size == (400, 240)
    with pytest.raises(LlavaError, match="JPEG of more than 64 scans, which would take too long"):
        load_image(f"data:image/jpeg;base64,{base64.b64encode(with_scans).decode()}")
    thumbnail = b"\xff\xe1" + (2 + 80 * 4).to_bytes(2, "big") + b"\xff\xda\0\2" * 80
    trailer = bytes(range(256)) + b"\xff\xda" * 200  # as of a film behind the picture
    assert jpeg_scans(sound[:2] + thumbnail + sound[2:] + trailer) == jpeg_scans(sound)


@pytest.mark.parametrize("big", [False, True])
def test_tiffs_of_many_strips_are_refused(big: bool) -> None:
    order = "<"
    entries = [(256, 4, 1, 1), (257, 4, 1, 200_000), (273, 4, 200_000, 8), (279, 4, 200_000, 8)]
    if big:
        head = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries))
        data = head + b"".join(struct.pack(order + "HHQQ", *entry) for entry in entries)
    else:
        head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        data = head + b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    assert tiff_strips(data) == 200_000
    with pytest.raises(LlavaError, match="TIFF of more than 100,000 strips"):
        load_image(f"data:image/tiff;base64,{base64.b64encode(data).decode()}")
    image = Image.fromarray(np.tile(GREY, (20, 1)))
    assert tiff_strips(encoded(image, "TIFF", big_tiff=big)) == 1
    assert tiff_strips(encoded(image, "TIFF", strip_size=20, compression="tiff_lzw")) == 240
    assert tiff_strips(data[:20]) == 0


def test_bounds_are_the_callers(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(COLOURS), "PNG")
    path, pixels = written(tmp_path, data), HEIGHT * WIDTH
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, Image.fromarray(COLOURS), COLOURS, uri):
        load_image(source, limits=ImageLimits(max_pixels=pixels))
        assert "pixels, more than" in refusal(source, limits=ImageLimits(max_pixels=pixels - 1))
    for source in (path, uri):
        load_image(source, limits=ImageLimits(max_bytes=len(data)))
        assert "is larger than" in refusal(source, limits=ImageLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_empty_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    assert refusal(Image.new("RGB", size)) == f"the PIL image is empty ({size[0]}x{size[1]} pixels)"
    assert refusal(written(tmp_path, png_claiming(*size)))


SAMPLES = {
    **{kind: encoded(Image.fromarray(COLOURS), kind, **options) for kind, options in LOSSLESS + LOSSY},
    "GIF": encoded(Image.fromarray(COLOURS), "GIF", save_all=True, append_images=[Image.fromarray(COLOURS[::-1])]),
    "TIFF-LZW": encoded(Image.fromarray(COLOURS), "TIFF", compression="tiff_lzw"),
    "APNG": encoded(Image.fromarray(COLOURS), "PNG", save_all=True, append_images=[Image.fromarray(COLOURS[::-1])]),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_truncated_files(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, SAMPLES[kind][: len(SAMPLES[kind]) // 2])
    assert refusal(path).startswith(f"{str(path)!r} is damaged and cannot be decoded: ")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_damaged_bytes_give_a_picture_or_one_line(kind: str, data: st.DataObject) -> None:
    sample = bytearray(SAMPLES[kind])
    for _ in range(data.draw(st.integers(0, 6))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(sample))))
    uri = "data:image/x;base64," + base64.b64encode(sample[:cut]).decode()
    try:
        outcome = load_image(uri, limits=ImageLimits(max_pixels=100_000), notice=lambda _: None).mode
    except LlavaError as error:
        outcome = str(error)
    assert outcome == "RGB" or (outcome.startswith("'data:") and outcome.isprintable())


def test_a_pillow_image_whose_file_is_gone(tmp_path: Path) -> None:
    path = written(tmp_path, SAMPLES["PNG"])
    image = Image.open(path)
    image.close()
    assert refusal(image).startswith("the PIL image is damaged and cannot be decoded: ")


def test_the_source_is_left_as_it_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(COLOURS), "PNG", exif=exif)))
    load_image(image)
    assert image.size == (WIDTH, HEIGHT)
    assert image.getexif()[0x0112] == 6


def test_registered_formats_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setitem(Image.OPEN, "EVIL", (lambda *a: opened.append(a), None))
    monkeypatch.setattr(Image, "ID", ["EVIL", *Image.ID])
    refusal(written(tmp_path, b"whatever"))
    assert not opened
