"""What can be asked about a scene without ambiguity, and the true answers.

Every `ask_…` takes a `View` of a scene and a random source and gives a `Question`, or None where the scene does not
lend itself to it. Kinds of which one is hardly visible are not counted, singled out or denied.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from paddle_llava.demo.backdrop import PLACE_SHARES
from paddle_llava.demo.composition import pick
from paddle_llava.demo.descriptions import padded_box
from paddle_llava.demo.kinds import KINDS, colours_of
from paddle_llava.demo.view import Reference, View
from paddle_llava.processing.boxes import box_iou

OPPOSITE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "front": "behind",
    "behind": "front",
}
_SORT_OF_RELATION = {
    "left": "left_right",
    "right": "left_right",
    "above": "above_below",
    "below": "above_below",
    "front": "depth",
    "behind": "depth",
}
# How often a number is asked for, where a scene offers it: large ones are rare in pictures, not in questions.
_COUNT_WEIGHTS = {0: 0.25, 1: 0.35, 2: 1.4, 3: 2.5, 4: 4.0, 5: 6.0, 6: 6.0}


def _absent_weights() -> dict[str, float]:
    """How often a kind is asked for in vain: as often, about, as it is seen."""
    weights = dict.fromkeys(KINDS, 0.0)
    for place, share in PLACE_SHARES.items():
        found = {name: kind.weight for name, kind in KINDS.items() if place in kind.places}
        for name, weight in found.items():
            weights[name] += share * weight / sum(found.values())
    return {name: weight**1.3 for name, weight in weights.items()}


_ABSENT_WEIGHTS = _absent_weights()


@dataclass(frozen=True)
class Question:
    """A question before it is put into words.

    `sort` is the key of its wordings; `answer` a key of `ANSWERS`, or what `answer_as` says of it: a colour, a
    kind, a named thing (kind and colour), a number or a box, already in writing, a place, a time, or the whole
    description.
    """

    sort: str
    answer: str
    answer_as: str = "fixed"
    objects: tuple[int, ...] = ()
    it: Reference | None = None
    other: Reference | None = None
    colour: str | None = None
    relation: str | None = None
    box: str | None = None


def ask_describe(view: View, rng: Random) -> Question | None:
    return Question("describe", "", "description")


def ask_what(view: View, rng: Random) -> Question | None:
    """The one thing of a colour; people are not things."""
    colours = Counter(thing.colour for thing in view.things)
    fitting = [
        number
        for number in view.clear
        if colours[view.things[number].colour] == 1 and view.things[number].kind != "person"
    ]
    if not fitting:
        return None
    number = rng.choice(fitting)
    thing = view.things[number]
    return Question("what", thing.kind, "kind", (number,), colour=thing.colour)


def ask_colour(view: View, rng: Random) -> Question | None:
    found = _subject(view, rng, colourless=True)
    if not found:
        return None
    number, name = found
    return Question("colour", view.things[number].colour, "colour", (number,), name)


def ask_count(view: View, rng: Random) -> Question | None:
    """Things of a kind, or of a kind and colour; sometimes there is none."""
    offers: dict[int, list[tuple[str, str | None]]] = {0: [_absent(view, rng)]}
    for kind, number in view.kinds.items():
        if kind not in view.murky and kind != "sun":
            offers.setdefault(number, []).append((kind, None))
    for pair, number in view.pairs.items():
        if pair[0] not in view.murky and number < view.kinds[pair[0]]:
            offers.setdefault(number, []).append(pair)
    number = int(pick({str(n): _COUNT_WEIGHTS.get(n, 6.0) for n in offers}, rng))
    kind, colour = rng.choice(offers[number])
    return Question("count", str(number), "text", _all_such(view, kind, colour), Reference(kind, colour))


def ask_where(view: View, rng: Random) -> Question | None:
    """In which of nine parts of the picture; nothing near a border of two."""
    found = _subject(view, rng)
    if not found:
        return None
    number, name = found
    x, y = view.centre(number)
    if any(abs(part - edge) < 0.035 for part in (x, y) for edge in (1 / 3, 2 / 3)):
        return None
    row, column = ("top", "", "bottom")[int(y * 3)], ("left", "", "right")[int(x * 3)]
    return Question("where", f"{row} {column}".strip() or "middle", "fixed", (number,), name)


def ask_relation(view: View, rng: Random) -> Question | None:
    found = _related(view, rng)
    if not found:
        return None
    one, relation, two, name, other = found
    return Question(_SORT_OF_RELATION[relation], relation, "fixed", (one, two), name, other)


def ask_yes_no(view: View, rng: Random) -> Question | None:
    """Half of the answers are yes, in each of the three sorts."""
    sort = rng.choices(("exists", "is_colour", "is_beside"), (0.5, 0.25, 0.25))[0]
    yes = rng.random() < 0.5
    answer = "yes" if yes else "no"
    if sort == "is_beside":
        related = _related(view, rng)
        if not related:
            return None
        one, relation, two, name, other = related
        told = relation if yes else OPPOSITE[relation]
        return Question("is_beside", answer, "fixed", (one, two), name, other, relation=told)
    if sort == "is_colour":
        found = _subject(view, rng, colourless=True)
        if not found:
            return None
        number, name = found
        own = view.things[number].colour
        colour = own if yes else _another_colour(view, name.kind, {own}, rng)
        return Question("is_colour", answer, "fixed", (number,), name, colour=colour)
    if not yes:
        return Question("exists", answer, "fixed", (), Reference(*_absent(view, rng)))
    if not view.clear:
        return None
    number = rng.choice([view.clear, view.clear, _one_of_each_kind(view, rng)][rng.randrange(3)])
    kind, colour = view.things[number].kind, view.things[number].colour if rng.random() < 0.67 else None
    return Question("exists", answer, "fixed", _all_such(view, kind, colour), Reference(kind, colour))


def ask_box(view: View, rng: Random) -> Question | None:
    found = _subject(view, rng)
    if not found:
        return None
    number, name = found
    return Question("box", padded_box(view.scene, number), "text", (number,), name)


def ask_at_box(view: View, rng: Random) -> Question | None:
    fitting = [
        number
        for number in view.clear
        if all(
            box_iou(view.things[number].box, rival.box) < 0.5
            for index, rival in enumerate(view.things)
            if index != number
        )
    ]
    if not fitting:
        return None
    number = rng.choice(fitting)
    thing = view.things[number]
    box = padded_box(view.scene, number)
    return Question("at_box", thing.kind, "named", (number,), colour=thing.colour, box=box)


def ask_place(view: View, rng: Random) -> Question | None:
    return Question("place", view.scene.place, "place")


def ask_time(view: View, rng: Random) -> Question | None:
    return Question("time", view.scene.time, "time")


def _subject(view: View, rng: Random, *, colourless: bool = False) -> tuple[int, Reference] | None:
    """An object to ask about and its name."""
    numbers = view.settled(view.clear)
    rng.shuffle(numbers)
    for number in numbers:
        if name := view.reference(number, rng, colourless=colourless):
            return number, name
    return None


def _related(view: View, rng: Random) -> tuple[int, str, int, Reference, Reference] | None:
    """Two objects, what holds between them, and their names; the rarer relations come first as often."""
    groups = [
        found
        for pair in (("left", "right"), ("above", "below"), ("front", "behind"))
        if (found := [it for it in view.relations if it[1] in pair])
    ]
    if not groups:
        return None
    one, relation, two = rng.choice(rng.choice(groups))
    name, other = view.reference(one, rng), view.reference(two, rng)
    return (one, relation, two, name, other) if name and other else None


def _absent(view: View, rng: Random) -> tuple[str, str | None]:
    """A kind, or a kind and colour, that the scene does not hold: near misses as often as strangers."""
    missing = {kind: weight for kind, weight in _ABSENT_WEIGHTS.items() if kind not in view.kinds}
    style = rng.randrange(3)
    if style == 0 and view.clear:  # the kind is there, in another colour
        kind = rng.choice(sorted(set(view.kinds) - view.murky) or [""])
        taken = {thing.colour for thing in view.things if thing.kind == kind}
        if kind and (colour := _another_colour(view, kind, taken, rng)):
            return kind, colour
    if style == 1 and view.clear:  # the colour is there, on another kind
        colour = view.things[rng.choice(view.clear)].colour
        bearers = {kind: weight for kind, weight in missing.items() if colour in colours_of(kind, view.scene.split)}
        if bearers:
            return pick(bearers, rng), colour
    return pick(missing, rng), None


def _another_colour(view: View, kind: str, taken: set[str], rng: Random) -> str | None:
    """One that the kind could have; preferably that of something else in the scene."""
    colours = {colour: weight for colour, weight in colours_of(kind, view.scene.split).items() if colour not in taken}
    seen = {thing.colour for thing in view.things}
    near = {colour: weight for colour, weight in colours.items() if colour in seen}
    if near and rng.random() < 0.5:
        colours = near
    return pick(colours, rng) if colours else None


def _all_such(view: View, kind: str, colour: str | None) -> tuple[int, ...]:
    return tuple(
        number for number, thing in enumerate(view.things) if thing.kind == kind and colour in (None, thing.colour)
    )


def _one_of_each_kind(view: View, rng: Random) -> list[int]:
    return list({view.things[number].kind: number for number in view.clear}.values())
