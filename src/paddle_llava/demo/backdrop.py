"""What lies behind the things of a scene: sky, hills, ground; and the light and grain over all of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from paddle_llava.demo.pen import Color, jitter, shade

PLACE_SHARES = {"street": 0.56, "park": 0.20, "river": 0.24}
PLACES = tuple(PLACE_SHARES)
TIMES = ("day", "evening")

_SKIES: dict[str, tuple[tuple[Color, Color], ...]] = {
    "day": (
        ((86, 158, 226), (196, 226, 244)),
        ((120, 182, 232), (226, 238, 244)),
        ((104, 150, 190), (190, 206, 216)),
        ((64, 136, 214), (164, 212, 244)),
    ),
    "evening": (
        ((58, 56, 112), (240, 168, 122)),
        ((84, 70, 128), (246, 190, 150)),
        ((46, 60, 104), (206, 146, 148)),
    ),
}
_GRASS: tuple[Color, ...] = ((132, 178, 98), (150, 186, 108), (116, 164, 96))
_PAVING: tuple[Color, ...] = ((198, 192, 184), (182, 180, 182), (206, 196, 178))
_ASPHALT: tuple[Color, ...] = ((96, 98, 106), (112, 112, 116), (84, 86, 94))
_WATER: tuple[Color, ...] = ((88, 146, 178), (104, 158, 172), (76, 128, 168))


@dataclass(frozen=True)
class Ground:
    """Where sky, far strip, middle (road or water) and near strip meet, as fractions of the height."""

    place: str
    time: str
    horizon: float
    middle: float
    near: float


def choose_ground(rng: Random) -> Ground:
    place = rng.choices(PLACES, tuple(PLACE_SHARES.values()))[0]
    time = TIMES[rng.random() < 0.35]
    horizon = 0.40 + 0.14 * rng.random()
    middle = horizon + 0.06 + 0.05 * rng.random()
    return Ground(place, time, horizon, middle, min(middle + 0.24 + 0.10 * rng.random(), 0.90))


def paint_backdrop(ground: Ground, size: tuple[int, int], rng: Random) -> Image.Image:
    """RGB picture of `size` (width, height) pixels."""
    width, height = size
    horizon, middle, near = (round(edge * height) for edge in (ground.horizon, ground.middle, ground.near))
    sky_top, sky_low = (jitter(color, rng, 10) for color in rng.choice(_SKIES[ground.time]))
    grass, paving = jitter(rng.choice(_GRASS), rng, 8), jitter(rng.choice(_PAVING), rng, 8)
    green_far, green_near = rng.random() < 0.4, rng.random() < 0.4
    asphalt, water = jitter(rng.choice(_ASPHALT), rng, 6), jitter(rng.choice(_WATER), rng, 8)
    if ground.place == "park":
        green_far = green_near = True
    image = Image.new("RGB", size, grass if green_near else paving)
    image.paste(_gradient(sky_top, sky_low, width, max(1, horizon)), (0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, width, middle), shade(grass if green_far else paving, 0.94))
    draw.rectangle((0, middle, width, near), {"street": asphalt, "park": grass, "river": water}[ground.place])
    hills = _mix(sky_low, (96, 128, 120) if ground.time == "day" else (96, 76, 110), rng.random() * 0.3 + 0.2)
    _hills(draw, width, height, horizon, hills, rng)
    if ground.place == "street":
        _road(draw, width, height, middle, near, rng)
    elif ground.place == "park":
        _path(draw, width, height, middle, near, paving, rng)
    else:
        _ripples(draw, width, height, middle, near, water, rng)
    if green_near:
        _tufts(draw, width, height, near, grass, rng)
    else:
        _slabs(draw, width, height, near, paving, rng)
    return image


def _gradient(top: Color, low: Color, width: int, height: int) -> Image.Image:
    steps = np.arange(height)[:, None]
    column = np.array(top) + (np.array(low) - np.array(top)) * steps // height
    return Image.fromarray(column.astype(np.uint8)[:, None]).resize((width, height), Image.Resampling.NEAREST)


def finish(image: Image.Image, ground: Ground, rng: Random) -> Image.Image:
    """Light (brightness, warmth) and the camera's grain."""
    level = 0.92 + 0.16 * rng.random() if ground.time == "day" else 0.84 + 0.14 * rng.random()
    warmth = (rng.random() - 0.5) * 0.06 + (0.0 if ground.time == "day" else 0.04)
    tables: list[int] = []
    for gain in (level + warmth, level, level - warmth):
        tables += np.minimum(np.arange(256) * gain, 255).astype(int).tolist()
    strength = rng.randrange(4)
    return ImageChops.add(image.point(tables), _grain(strength, image.size, rng), 1, -128)


def _grain(strength: int, size: tuple[int, int], rng: Random) -> Image.Image:
    """Noise around 128 with a standard deviation of about 2.5 grey levels per step of `strength`."""
    plate = _grain_plate(strength)
    left, top = rng.randrange(256), rng.randrange(256)
    if left + size[0] <= plate.width and top + size[1] <= plate.height:
        return plate.crop((left, top, left + size[0], top + size[1]))
    tiled = Image.new("RGB", size)
    for x in range(-left, size[0], plate.width):
        for y in range(-top, size[1], plate.height):
            tiled.paste(plate, (x, y))
    return tiled


@cache
def _grain_plate(strength: int) -> Image.Image:
    raw = np.frombuffer(Random(strength).randbytes(4 * 512 * 512 * 3), np.uint8).astype(np.int64)
    bell = raw.reshape(4, 512, 512, 3).sum(0) - 510  # standard deviation 148
    return Image.fromarray((128 + bell * strength // 60).astype(np.uint8))


def _mix(one: Color, other: Color, part: float) -> Color:
    red, green, blue = (int(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _hills(draw: ImageDraw.ImageDraw, width: int, height: int, horizon: int, color: Color, rng: Random) -> None:
    for _ in range(rng.randrange(4)):
        centre, across, tall = rng.random(), 0.2 + 0.4 * rng.random(), 0.03 + 0.09 * rng.random()
        left, right = round((centre - across) * width), round((centre + across) * width)
        top = horizon - round(tall * height)
        draw.chord((left, top, right, max(2 * horizon - top, top + 1)), 180, 360, color)


def _road(draw: ImageDraw.ImageDraw, width: int, height: int, middle: int, near: int, rng: Random) -> None:
    kerb = max(1, height // 110)
    for y in (middle, near):
        draw.rectangle((0, y - kerb, width, y), (222, 218, 210))
    lane, dash = round(middle + (near - middle) * 0.46), max(4, round(width * (0.06 + 0.05 * rng.random())))
    for x in range(-round(rng.random() * dash), width, 2 * dash):
        draw.rectangle((x, lane, x + dash, lane + max(1, height // 90)), (232, 230, 214))
    crossing, left = rng.random() < 0.3, rng.random() * 0.8
    if crossing:
        bar = max(2, (near - middle) // 11)
        for y in range(middle + bar, near - bar, 2 * bar):
            draw.rectangle((round(left * width), y, round((left + 0.14) * width), y + bar), (226, 224, 216))


def _path(
    draw: ImageDraw.ImageDraw, width: int, height: int, middle: int, near: int, color: Color, rng: Random
) -> None:
    start, end = rng.random(), rng.random()
    x1, x2 = round((0.3 + 0.4 * start) * width), round((0.1 + 0.5 * end) * width)
    corners = [(x1, middle), (x1 + width // 20, middle), (x2 + width // 5, height), (x2 - width // 12, height)]
    draw.polygon(corners, color)


def _ripples(
    draw: ImageDraw.ImageDraw, width: int, height: int, middle: int, near: int, color: Color, rng: Random
) -> None:
    kerb = max(1, height // 60)
    draw.rectangle((0, middle - kerb, width, middle), (142, 134, 124))
    draw.rectangle((0, near, width, near + kerb), (156, 148, 138))
    for _ in range(14):
        x, y = round(rng.random() * width), round(middle + (0.08 + 0.86 * rng.random()) * (near - middle))
        draw.line((x, y, x + width // 14, y), shade(color, 1.25), max(1, height // 150))


def _tufts(draw: ImageDraw.ImageDraw, width: int, height: int, near: int, color: Color, rng: Random) -> None:
    blade = max(2, height // 60)
    for _ in range(16):
        x, y = round(rng.random() * width), round(near + (0.1 + 0.9 * rng.random()) * (height - near))
        draw.line((x - blade // 2, y - blade, x, y, x + blade // 2, y - blade), shade(color, 0.8), max(1, blade // 3))


def _slabs(draw: ImageDraw.ImageDraw, width: int, height: int, near: int, color: Color, rng: Random) -> None:
    joint = shade(color, 0.9)
    offset, step = rng.random(), max(6, width // 8)
    for x in range(-step, width + step, step):
        far = round(x + offset * step)
        draw.line((far, near, round(far + (far - width / 2) * 0.4), height), joint, max(1, height // 200))
    draw.line((0, (near + height) // 2, width, (near + height) // 2), joint, max(1, height // 200))
