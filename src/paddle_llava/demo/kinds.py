"""The kinds of things in a street scene: how each is drawn, how large, where, and in which colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from paddle_llava.demo import creatures, townscape, vehicles
from paddle_llava.demo.backdrop import PLACES
from paddle_llava.demo.pen import COLOURS, Pen

Split = Literal["train", "heldout"]

# Never drawn, named or asked about in `train`.
HELDOUT_PAIRS = frozenset(
    {
        ("bus", "purple"),
        ("car", "orange"),
        ("truck", "pink"),
        ("bicycle", "green"),
        ("house", "blue"),
        ("person", "yellow"),
        ("bench", "red"),
        ("boat", "black"),
        ("balloon", "white"),
    }
)


@dataclass(frozen=True)
class Kind:
    """How a kind of thing is drawn and where.

    `aspects`: ranges of width / height, one is chosen; `height` in units of the picture's shorter side, before
    perspective; `strips` where it stands (`sky`, `far`, `middle`, `near`); `places` it is found in; `weight` how
    often; `colours` with their weights.
    """

    draw: Callable[[Pen], None]
    aspects: tuple[tuple[float, float], ...]
    height: tuple[float, float]
    strips: tuple[str, ...]
    places: tuple[str, ...]
    weight: float
    colours: dict[str, float]


_ANY = dict.fromkeys(COLOURS, 1.0)
_EVERYWHERE = PLACES
_STREET = ("street",)
_CROWNS = {"green": 4.0, "yellow": 1.0, "orange": 1.5, "red": 1.0, "pink": 1.5}
_COATS = {"brown": 2.0, "black": 1.5, "white": 1.5, "orange": 1.0}
_PAINTED = {name: 1.0 for name in COLOURS if name not in ("pink", "purple")}

KINDS: dict[str, Kind] = {
    "bus": Kind(
        vehicles.draw_bus, ((0.86, 0.96), (1.2, 1.4), (2.0, 2.5)), (0.24, 0.40), ("middle",), _STREET, 1.5, _ANY
    ),
    "car": Kind(vehicles.draw_car, ((1.15, 1.3), (2.1, 2.5)), (0.14, 0.22), ("middle",), _STREET, 1.5, _ANY),
    "truck": Kind(vehicles.draw_truck, ((1.9, 2.3),), (0.20, 0.31), ("middle",), _STREET, 1.3, _ANY),
    "bicycle": Kind(
        vehicles.draw_bicycle, ((1.5, 1.65),), (0.16, 0.27), ("far", "near", "near"), _EVERYWHERE, 1.0, _ANY
    ),
    "boat": Kind(vehicles.draw_boat, ((0.9, 1.1), (2.0, 2.5)), (0.17, 0.30), ("middle",), ("river",), 3.0, _ANY),
    "tree": Kind(
        townscape.draw_tree, ((0.36, 0.44), (0.7, 0.9)), (0.34, 0.56), ("far", "near"), _EVERYWHERE, 1.2, _CROWNS
    ),
    "house": Kind(townscape.draw_house, ((0.52, 0.66), (1.0, 1.25)), (0.36, 0.60), ("far",), _EVERYWHERE, 1.2, _ANY),
    "person": Kind(
        creatures.draw_person, ((0.36, 0.42),), (0.24, 0.38), ("far", "near", "near"), _EVERYWHERE, 1.3, _ANY
    ),
    "traffic light": Kind(
        townscape.draw_traffic_light,
        ((0.24, 0.30),),
        (0.30, 0.46),
        ("far", "near"),
        _STREET,
        1.0,
        {"red": 1.0, "yellow": 1.0, "green": 1.0},
    ),
    "street lamp": Kind(
        townscape.draw_street_lamp,
        ((0.15, 0.17), (0.24, 0.30)),
        (0.36, 0.56),
        ("far", "near"),
        _EVERYWHERE,
        0.9,
        {"black": 1.5, "green": 1.0, "blue": 1.0, "white": 1.0},
    ),
    "bench": Kind(
        townscape.draw_bench, ((1.7, 2.1),), (0.12, 0.19), ("far", "near", "near"), _EVERYWHERE, 0.9, _PAINTED
    ),
    "dog": Kind(creatures.draw_dog, ((1.35, 1.5),), (0.13, 0.20), ("near",), _EVERYWHERE, 1.0, _COATS),
    "sun": Kind(
        townscape.draw_sun,
        ((1.0, 1.0),),
        (0.10, 0.18),
        ("sky",),
        _EVERYWHERE,
        1.0,
        {"yellow": 2.0, "orange": 1.0, "red": 1.0},
    ),
    "cloud": Kind(
        townscape.draw_cloud,
        ((1.7, 2.3),),
        (0.08, 0.14),
        ("sky",),
        _EVERYWHERE,
        1.2,
        {"white": 2.0, "pink": 1.0, "black": 1.0},
    ),
    "bird": Kind(townscape.draw_bird, ((1.4, 1.6),), (0.07, 0.13), ("sky",), _EVERYWHERE, 1.0, _ANY),
    "balloon": Kind(townscape.draw_balloon, ((0.68, 0.76),), (0.14, 0.26), ("sky",), _EVERYWHERE, 1.0, _ANY),
}


def colours_of(kind: str, split: Split) -> dict[str, float]:
    """The colours that `kind` comes in, with their weights; held-out ones only in `heldout`."""
    colours = KINDS[kind].colours
    if split == "heldout":
        return colours
    return {colour: weight for colour, weight in colours.items() if (kind, colour) not in HELDOUT_PAIRS}
