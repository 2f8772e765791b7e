"""Which things a scene holds and where each stands, in fractions of the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from paddle_llava.demo.backdrop import Ground
from paddle_llava.demo.kinds import HELDOUT_PAIRS, KINDS, Split, colours_of
from paddle_llava.demo.pen import Color, unnamed
from paddle_llava.processing.boxes import Box

_TRIES = 14
_CLOSEST = 2.0  # times as large as they usually are, all things of a picture that is taken from nearby
_MANY_COLOURS, _REPAINTED = 8, 0.7  # what a kind must come in to be repainted, and how often it is
_WIDEST, _TALLEST = 0.9, 0.85  # parts of the picture


@dataclass(frozen=True)
class Placed:
    """A thing to be drawn: its full box in fractions of the picture, and a seed for its variants; a colour by its name
    or, where it has none, itself."""

    kind: str
    colour: str | Color
    box: Box
    seed: int
    flipped: bool = False

    @property
    def depth(self) -> tuple[bool, float]:
        """Sorts the sky's things before the ground's, and those by where they stand."""
        return KINDS[self.kind].strips != ("sky",), self.box[3]


def compose(ground: Ground, aspect: float, split: Split, number: tuple[int, int], rng: Random) -> list[Placed]:
    """Things for `ground` in a picture of width / height `aspect`; what finds no room is left out."""
    kinds = _choose_kinds(ground.place, rng.randint(*number), rng)
    pairs: list[tuple[str, str]] = []
    for kind in kinds:
        pairs.append((kind, _choose_colour(kind, split, pairs, rng)))
    if split == "heldout" and rng.random() < 0.5:
        new = [pair for pair in sorted(HELDOUT_PAIRS) if ground.place in KINDS[pair[0]].places]
        pairs = [rng.choice(new), *pairs[:-1]]  # first, so that it finds room
    closeness = rng.choice((1.0, rng.uniform(1.0, _CLOSEST)))
    things: list[Placed] = []
    for kind, colour in pairs:
        crowd = sum(kind == other for other, _ in pairs)
        size = closeness * (0.8 if crowd > 2 else 1.0)
        box = _find_room(kind, ground, aspect, size, [thing.box for thing in things], rng)
        if box:
            things.append(Placed(kind, colour, box, rng.randrange(2**32), rng.random() < 0.5))
    return things


def repaint(things: list[Placed], rng: Random) -> list[Placed]:
    """Most `things` of the kinds that come in many colours, in colours that have no name; not in one that is next to a
    colour which training never shows the kind in."""
    return [
        replace(thing, colour=unnamed(colours_of(thing.kind, "train"), rng))
        if len(KINDS[thing.kind].colours) >= _MANY_COLOURS and rng.random() < _REPAINTED
        else thing
        for thing in things
    ]


def _choose_kinds(place: str, number: int, rng: Random) -> list[str]:
    """Two scenes in three have a theme, a kind that comes several times: counting needs more than ones."""
    weights = {name: kind.weight for name, kind in KINDS.items() if place in kind.places}
    kinds: list[str] = []
    if number > 1 and rng.random() < 0.66:
        themes = {name: weight for name, weight in weights.items() if name != "sun"}
        theme = pick(themes, rng)
        kinds = [theme] * min(number, 2 + rng.randrange(4))
    while len(kinds) < number:
        if kinds:
            weights[kinds[-1]] *= 0.0 if kinds[-1] == "sun" else 0.3
        kinds.append(pick(weights, rng))
    return kinds


def _choose_colour(kind: str, split: Split, before: list[tuple[str, str]], rng: Random) -> str:
    """Any that the kind has; now and then that of the last of its kind, so that colours repeat too."""
    same = [colour for other, colour in before if other == kind]
    return same[-1] if same and rng.random() < 0.25 else pick(colours_of(kind, split), rng)


def _find_room(kind: str, ground: Ground, aspect: float, size: float, taken: list[Box], rng: Random) -> Box | None:
    """A full box for one more thing, `size` times as large as its kind usually is: mostly free of others, sometimes
    partly behind or before one."""
    style = KINDS[kind]
    tolerated = rng.choices((0.10, 0.45, 0.90), (0.72, 0.20, 0.08))[0]
    shape = rng.uniform(*rng.choice(style.aspects))
    tall = rng.uniform(*style.height) * min(1.0, aspect) * size
    tall = min(tall, _TALLEST, _WIDEST * aspect / shape)
    outside = 0.3 if rng.random() < 0.08 else 0.0
    for attempt in range(_TRIES):
        if attempt in (6, 10):
            tall *= 0.84
        foot = _foot(kind, ground, tall, rng)
        height = tall if style.strips == ("sky",) else tall * (0.74 + 0.62 * (foot - ground.horizon))
        width = height * shape / aspect
        left = rng.uniform(-outside * width, 1 - width + outside * width)
        box = (left, foot - height, left + width, foot)
        if all(_shared(box, other) <= tolerated for other in taken):
            return box
    return None


def _foot(kind: str, ground: Ground, tall: float, rng: Random) -> float:
    """Where a thing's lower edge may be, from the top of the picture."""
    strip = rng.choice(KINDS[kind].strips)
    if strip == "sky":
        return rng.uniform(0.02 + tall, max(0.03 + tall, ground.horizon - 0.04))
    if strip == "far":
        depth = ground.middle - ground.horizon
        return ground.horizon + depth * (rng.uniform(0.1, 0.5) if kind == "house" else rng.uniform(0.5, 1.0))
    if strip == "middle":
        depth = ground.near - ground.middle
        return ground.middle + depth * rng.uniform(0.35 if ground.place == "river" else 0.28, 0.96)
    start = ground.middle if ground.place == "park" else ground.near
    return rng.uniform(min(start + 0.05, 0.93), 0.985)


def _shared(one: Box, other: Box) -> float:
    """Intersection over the smaller of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))


def pick(weights: dict[str, float], rng: Random) -> str:
    """One of the keys, as often as its weight says."""
    left = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return name
