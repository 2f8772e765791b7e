"""A scene as the grid of cells that the eye sees: what is in each, whose box, and which cell speaks for a thing.

Eye and tongue are pretrained apart, and this is what they have in common: the eye learns to tell the cells' contents
from pixels, the tongue to answer questions from the contents themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from paddle_llava.demo.backdrop import PLACES, TIMES
from paddle_llava.demo.descriptions import described, in_sky
from paddle_llava.demo.kinds import KINDS
from paddle_llava.demo.pen import COLOURS
from paddle_llava.demo.scenes import Scene
from paddle_llava.processing.boxes import to_padded_frame

KIND_NAMES, COLOUR_NAMES = list(KINDS), list(COLOURS)
STEPS = 101  # coordinates 0.00 to 1.00, as answers write them
MOST = 8  # things that are counted in a scene
WIDTHS = {
    "kind": len(KIND_NAMES) + 1,
    "colour": len(COLOUR_NAMES) + 1,
    "anchor": 1,
    "alike": MOST + 1,
    "twins": MOST + 1,
    "rank": MOST + 1,
    "place": len(PLACES),
    "time": len(TIMES),
    "box": 4 * STEPS,
}
WIDTH = sum(WIDTHS.values())
_FINE = 256
_SPREAD = 1.0  # of a coordinate over its neighbours, in steps
_SMOOTH = np.exp(-0.5 * (np.subtract.outer(np.arange(STEPS), np.arange(STEPS)) / _SPREAD) ** 2).astype(np.float32)
_SMOOTH /= _SMOOTH.sum(1, keepdims=True)


class Cells(NamedTuple):
    """The cells of a padded picture, row by row, int64 [cells]; `box` [cells, 4] in hundredths.

    `kind` and `colour` count from 1; 0 is the background, of which `box` means nothing, and a colour without a name.
    `anchor` is 1 in one cell of each clear object, the one next to its middle. `alike` is how many clear objects are of
    the kind of the cell's, `twins` how many have its colour too (0 where that has no name), `rank` its place from the
    left, counted from 1, among what a description tells of the ground or of the sky (0 if it does not tell of it).
    `place` and `time` are the scene's, in every cell. `owner` is the number of the cell's object in the scene, counted
    from 1.
    """

    kind: np.ndarray
    colour: np.ndarray
    anchor: np.ndarray
    alike: np.ndarray
    twins: np.ndarray
    rank: np.ndarray
    place: np.ndarray
    time: np.ndarray
    box: np.ndarray
    owner: np.ndarray


def cells_of(scene: Scene, side: int) -> Cells:
    """The `side` x `side` cells of `scene` in its square-padded frame."""
    shares = _shares(scene, side)
    owner = np.where(shares[1:].max(0, initial=0) > 0.12, shares[1:].argmax(0) + 1 if len(shares) > 1 else 0, 0)
    boxes = [to_padded_frame(thing.box, *scene.size) for thing in scene.objects]
    anchor = np.zeros(side * side, np.int64)
    rows, columns = np.divmod(np.arange(side * side), side)
    for number, thing in enumerate(scene.objects):
        if thing.clear:
            x1, y1, x2, y2 = boxes[number]
            away = np.hypot((columns + 0.5) / side - (x1 + x2) / 2, (rows + 0.5) / side - (y1 + y2) / 2)
            own = (shares[number + 1] > 0.04) & (anchor == 0)
            cell = int(np.where(own, away, 9.0).argmin())
            owner[cell], anchor[cell] = number + 1, 1
    kind = np.array([0, *(KIND_NAMES.index(thing.kind) + 1 for thing in scene.objects)])
    colour = np.array([0, *(COLOUR_NAMES.index(it.colour) + 1 if it.colour else 0 for it in scene.objects)])
    alike, twins, rank = (
        np.array([0, *numbers]).clip(0, MOST) for numbers in (_alike(scene), _twins(scene), _ranks(scene))
    )
    hundredths = np.array([(0, 0, 0, 0), *boxes]) * 100
    place, time = PLACES.index(scene.place), TIMES.index(scene.time)
    return Cells(
        kind[owner],
        colour[owner],
        anchor,
        alike[owner],
        twins[owner],
        rank[owner],
        np.full(side * side, place),
        np.full(side * side, time),
        hundredths.round().clip(0, STEPS - 1).astype(np.int64)[owner],
        owner,
    )


def as_numbers(cells: Cells) -> np.ndarray:
    """float32 [cells, WIDTH]: each of `WIDTHS` in its order, one of many as a one, a coordinate spread a little."""
    is_thing = (cells.kind > 0)[:, None]
    return np.concatenate(
        [
            np.eye(WIDTHS["kind"], dtype=np.float32)[cells.kind],
            np.eye(WIDTHS["colour"], dtype=np.float32)[cells.colour],
            cells.anchor[:, None].astype(np.float32),
            *(np.eye(MOST + 1, dtype=np.float32)[values] for values in (cells.alike, cells.twins, cells.rank)),
            np.eye(WIDTHS["place"], dtype=np.float32)[cells.place],
            np.eye(WIDTHS["time"], dtype=np.float32)[cells.time],
            _SMOOTH[cells.box].reshape(len(cells.kind), -1) * is_thing,
        ],
        axis=1,
    )


def spread(coordinates: np.ndarray) -> np.ndarray:
    """int64 [...] hundredths to float32 [..., STEPS], probabilities: the one meant, and its neighbours."""
    return _SMOOTH[coordinates]


def _alike(scene: Scene) -> list[int]:
    kinds = Counter(thing.kind for thing in scene.objects if thing.clear)
    return [kinds[thing.kind] for thing in scene.objects]


def _twins(scene: Scene) -> list[int]:
    pairs = Counter((thing.kind, thing.colour) for thing in scene.objects if thing.clear and thing.colour)
    return [pairs[thing.kind, thing.colour] for thing in scene.objects]


def _ranks(scene: Scene) -> list[int]:
    ranks = dict.fromkeys(scene.objects, 0)
    for sky in (False, True):
        told = [thing for thing in described(scene) if in_sky(thing.kind) == sky]
        ranks |= {thing: rank for rank, thing in enumerate(told, 1)}
    return [ranks[thing] for thing in scene.objects]


def _shares(scene: Scene, side: int) -> np.ndarray:
    """float32 [1 + objects, cells]: the part of each cell that the background (0) and each object fill."""
    height, width = scene.labels.shape
    longer = max(height, width)
    fine = ((np.arange(_FINE) + 0.5) * longer / _FINE).astype(np.int64)
    rows, columns = fine - (longer - height) // 2, fine - (longer - width) // 2
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    labels = scene.labels[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)] * inside
    masks = labels == np.arange(len(scene.objects) + 1)[:, None, None]
    step = _FINE // side
    return masks.reshape(-1, side, step, side, step).mean((2, 4), dtype=np.float32).reshape(len(masks), -1)
