"""Endless street pictures, and where everything in them is.

    scene = draw_scene(7)
    scene.image, scene.objects[0].kind, scene.objects[0].colour, scene.objects[0].box

A scene follows from its seed alone: nothing of the platform, no font file and no clock goes into it (Pillow before
11.3 fills the edges of some polygons a pixel otherwise). It is composed in fractions of the picture, so that one seed
gives the same scene at any size of the same aspect ratio, then painted from far to near at twice its size and halved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
from PIL import Image

from paddle_llava.demo.backdrop import Ground, choose_ground, finish, paint_backdrop
from paddle_llava.demo.composition import Placed, compose, repaint
from paddle_llava.demo.kinds import KINDS, Split
from paddle_llava.demo.pen import Pen
from paddle_llava.processing.boxes import Box

CLEARLY_VISIBLE = 0.55
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class SceneObject:
    """One thing that can be seen, if only in part; `colour` is "" where it has no name.

    `box` (x1, y1, x2, y2) frames its visible drawing, in pixels of the picture (exact to half a pixel, the step of
    the supersampled drawing); `visible` is the part of its drawing that is neither hidden nor outside of the
    picture, 0 to 1; `area` the visible drawing's share of the picture.
    """

    kind: str
    colour: str
    box: Box
    visible: float
    area: float

    @property
    def clear(self) -> bool:
        """Whether it is seen well enough to be asked about."""
        return self.visible >= CLEARLY_VISIBLE


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it, far things before near ones: an object's number is its depth order.

    `labels` uint8 [2 * height, 2 * width]: at twice the picture's size, 0 for background, else an object's number
    plus 1. `hides[(near, far)]` is the part of object `far`'s drawing that object `near` covers, where it does.
    """

    image: Image.Image
    objects: tuple[SceneObject, ...]
    place: str
    time: str
    split: Split
    labels: np.ndarray = field(repr=False)
    hides: dict[tuple[int, int], float]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


def draw_scene(
    seed: int,
    *,
    size: int | tuple[int, int] = (224, 224),
    split: Split = "train",
    objects: tuple[int, int] = (2, 8),
    unnamed: bool = False,
) -> Scene:
    """The scene of `seed`; the splits are two worlds of their own.

    `size` is (width, height) in pixels, or the longer side alone with an aspect ratio that the seed chooses.
    `objects` is how many are drawn, from least to most; some may end hidden. Half of the `heldout` scenes hold a
    pair of kind and colour that no `train` scene has. `unnamed` paints things in colours without a name: what they are
    can be learnt from such a scene, but nothing can be asked about it.
    """
    rng = Random(f"{split} {seed}")
    aspect = rng.choice((1.0, 1.0, 1.0, 4 / 3, 4 / 3, 3 / 4, 3 / 2, 16 / 9))
    if isinstance(size, int):
        size = (size, round(size / aspect)) if aspect >= 1 else (round(size * aspect), size)
    ground = choose_ground(rng)
    things = compose(ground, size[0] / size[1], split, objects, rng)
    return paint(ground, repaint(things, rng) if unnamed else things, size, split, rng)


def paint(ground: Ground, things: list[Placed], size: tuple[int, int], split: Split, rng: Random) -> Scene:
    """Draw `things` on `ground`, and measure what is seen of each."""
    big = (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING)
    canvas, labels = paint_backdrop(ground, big, rng), Image.new("L", big)
    things = sorted(things, key=lambda thing: thing.depth)
    drawn, covered = [], {}
    for number, thing in enumerate(things):
        left, right = (round(x * big[0]) for x in (thing.box[0], thing.box[2]))
        top, bottom = (round(y * big[1]) for y in (thing.box[1], thing.box[3]))
        pen = Pen(max(4, right - left), max(4, bottom - top), thing.colour, Random(thing.seed))
        KINDS[thing.kind].draw(pen)
        sprite = pen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.flipped else pen.image
        if thing.depth[0]:
            _shadow(canvas, left, right, bottom)
        mask = sprite.getchannel("A")
        where = (left, top, left + sprite.width, top + sprite.height)
        under = labels.crop(where).histogram(mask)
        covered.update({(number, far): under[far + 1] for far in range(number) if under[far + 1]})
        canvas.paste(sprite, (left, top), mask)
        labels.paste(number + 1, (left, top), mask)
        drawn.append((where, mask.histogram()[255]))
    image = finish(canvas.reduce(_SUPERSAMPLING), ground, rng)
    seen = _measure(labels, things, drawn)
    new = {number: rank for rank, number in enumerate(n for n, it in enumerate(seen) if it)}
    if len(new) < len(things):
        labels = labels.point([0, *(new.get(number, -1) + 1 for number in range(255))])
    hides = {
        (new[near], new[far]): pixels / drawn[far][1]
        for (near, far), pixels in covered.items()
        if near in new and far in new
    }
    objects = tuple(it for it in seen if it)
    return Scene(image, objects, ground.place, ground.time, split, np.asarray(labels), hides)


def _measure(
    labels: Image.Image, things: list[Placed], drawn: list[tuple[tuple[int, int, int, int], int]]
) -> list[SceneObject | None]:
    """What is seen of each thing; None of one that is wholly hidden."""
    pixels = np.asarray(labels)
    seen: list[SceneObject | None] = []
    for number, (thing, (where, total)) in enumerate(zip(things, drawn, strict=True)):
        left, top = max(where[0], 0), max(where[1], 0)
        own = pixels[top : where[3], left : where[2]] == number + 1
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        if not len(rows):
            seen.append(None)
            continue
        count = int(np.count_nonzero(own))
        corners = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        x1, y1, x2, y2 = (int(corner) / _SUPERSAMPLING for corner in corners)
        share = count / pixels.size
        colour = thing.colour if isinstance(thing.colour, str) else ""
        seen.append(SceneObject(thing.kind, colour, (x1, y1, x2, y2), count / total, share))
    return seen


def _shadow(canvas: Image.Image, left: int, right: int, bottom: int) -> None:
    width = right - left
    tall = max(3, width // 9)
    disc = _SHADOW.resize((width + tall, tall), Image.Resampling.NEAREST)
    canvas.paste((40, 40, 52), (left - tall // 2, bottom - tall // 2), disc)


def _soft_disc() -> Image.Image:
    across = np.linspace(-1, 1, 64) ** 2
    return Image.fromarray((np.clip(1.2 - across[:, None] - across, 0, 0.7) * 150).astype(np.uint8))


_SHADOW = _soft_disc()
