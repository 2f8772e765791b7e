"""The pen that draws one thing of a street scene, and the colours it draws with."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from random import Random

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Color] = {
    "red": (208, 40, 42),
    "orange": (242, 134, 28),
    "yellow": (248, 212, 48),
    "green": (62, 152, 70),
    "blue": (42, 98, 206),
    "purple": (132, 62, 172),
    "pink": (244, 142, 188),
    "brown": (124, 78, 44),
    "black": (44, 44, 50),
    "white": (242, 242, 238),
}

_FAR = 70  # from every named colour, as the crow flies in RGB

GLASS: Color = (178, 212, 230)
TYRE: Color = (34, 34, 38)
STEEL: Color = (150, 154, 160)
LAMP: Color = (255, 240, 170)
TAIL: Color = (168, 24, 30)
SKIN = ((250, 214, 180), (226, 176, 134), (176, 122, 84), (112, 74, 52))
ROOFS = ((122, 62, 52), (92, 84, 92), (74, 68, 74), (142, 88, 62), (84, 96, 108))


def shade(color: Color, factor: float) -> Color:
    """`color` darker (`factor` below 1) or nearer to white (above 1)."""
    if factor <= 1:
        red, green, blue = (int(value * factor) for value in color)
    else:
        red, green, blue = (int(value + (255 - value) * (factor - 1)) for value in color)
    return red, green, blue


def jitter(color: Color, rng: Random, by: int = 12) -> Color:
    red, green, blue = (min(255, max(0, value + int((rng.random() - 0.5) * 2 * by))) for value in color)
    return red, green, blue


def unnamed(near: Collection[str], rng: Random) -> Color:
    """A colour that none of the names fits (turquoise, olive, beige...), the nearest of which is among `near`."""
    while True:
        color = rng.randrange(20, 250), rng.randrange(20, 250), rng.randrange(20, 250)
        away = {name: math.dist(color, named) for name, named in COLOURS.items()}
        nearest = min(away, key=away.__getitem__)
        if away[nearest] > _FAR and nearest in near:
            return color


class Pen:
    """Draws in fractions of a transparent picture's width (x) and height (y).

    A disc's radius and a line's thickness are fractions of the height, so that wheels stay round. What is drawn
    is opaque: the picture's alpha is exactly the thing's mask, 0 or 255. `rng` decides on a thing's variants; a
    shape takes the same numbers from it at every size. `colour` is one of `COLOURS`, or a colour without
    a name.
    """

    def __init__(self, width: int, height: int, colour: str | Color, rng: Random) -> None:
        self.image = Image.new("RGBA", (width, height))
        self.rng = rng
        self.aspect = width / height
        self.base = jitter(COLOURS[colour] if isinstance(colour, str) else colour, rng)
        self.dark = shade(self.base, 0.72) if colour != "white" else shade(self.base, 0.86)
        self.light = shade(self.base, 1.25)
        self._width, self._height = width, height
        self._draw = ImageDraw.Draw(self.image)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def rect(self, x1: float, y1: float, x2: float, y2: float, fill: Color) -> None:
        self._draw.rectangle(self._pixels(x1, y1, x2, y2), fill)

    def oval(self, x1: float, y1: float, x2: float, y2: float, fill: Color) -> None:
        self._draw.ellipse(self._pixels(x1, y1, x2, y2), fill)

    def round(self, x1: float, y1: float, x2: float, y2: float, radius: float, fill: Color) -> None:
        """A rectangle with rounded corners; `radius` is a fraction of the height."""
        left, top, right, bottom = self._pixels(x1, y1, x2, y2)
        edge = min(round(radius * self._height), (right - left) // 2, (bottom - top) // 2)
        if edge < 1:
            self._draw.rectangle((left, top, right, bottom), fill)
            return
        self._draw.rectangle((left + edge, top, right - edge, bottom), fill)
        self._draw.rectangle((left, top + edge, right, bottom - edge), fill)
        for x in (left, right - 2 * edge):
            for y in (top, bottom - 2 * edge):
                self._draw.ellipse((x, y, x + 2 * edge, y + 2 * edge), fill)

    def disc(self, x: float, y: float, radius: float, fill: Color) -> None:
        across = radius / self.aspect
        self._draw.ellipse(self._pixels(x - across, y - radius, x + across, y + radius), fill)

    def ring(self, x: float, y: float, radius: float, thickness: float, fill: Color) -> None:
        across = radius / self.aspect
        where = self._pixels(x - across, y - radius, x + across, y + radius)
        self._draw.ellipse(where, None, fill, self._thick(thickness))

    def poly(self, points: Sequence[Point], fill: Color) -> None:
        self._draw.polygon(self._places(points), fill)

    def line(self, points: Sequence[Point], thickness: float, fill: Color) -> None:
        self._draw.line(self._places(points), fill, self._thick(thickness))

    def wheel(self, x: float, y: float, radius: float) -> None:
        self.disc(x, y, radius, TYRE)
        self.disc(x, y, radius * 0.5, STEEL)

    def _thick(self, thickness: float) -> int:
        return max(2, round(thickness * self._height))

    def _places(self, points: Sequence[Point]) -> list[tuple[int, int]]:
        right, bottom = self._width - 1, self._height - 1
        return [(round(x * right), round(y * bottom)) for x, y in points]

    def _pixels(self, x1: float, y1: float, x2: float, y2: float) -> tuple[int, int, int, int]:
        """Inclusive corners, never empty."""
        left, top = round(x1 * self._width), round(y1 * self._height)
        right, bottom = round(x2 * self._width) - 1, round(y2 * self._height) - 1
        return left, top, max(left, right), max(top, bottom)
