"""What a scene holds, as questions need to know it: what is clear, what is alike, what is beside what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from random import Random

from paddle_llava.demo.descriptions import in_sky
from paddle_llava.demo.scenes import Scene


@dataclass(frozen=True)
class Reference:
    """A name that fits one object of the scene only; `side` is "left" or "right" for leftmost or rightmost."""

    kind: str
    colour: str | None = None
    side: str | None = None


class View:
    """A scene as questions see it: what is clear, what is alike, what holds between two things."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.things = scene.objects

    @cached_property
    def clear(self) -> list[int]:
        return [number for number, thing in enumerate(self.things) if thing.clear]

    @cached_property
    def murky(self) -> set[str]:
        """Kinds of which one is hardly visible."""
        return {thing.kind for thing in self.things if not thing.clear}

    @cached_property
    def kinds(self) -> Counter[str]:
        return Counter(thing.kind for thing in self.things)

    @cached_property
    def pairs(self) -> Counter[tuple[str, str]]:
        return Counter((thing.kind, thing.colour) for thing in self.things)

    def settled(self, numbers: list[int]) -> list[int]:
        return [number for number in numbers if self.things[number].kind not in self.murky]

    def centre(self, number: int) -> tuple[float, float]:
        """Of the visible box, in fractions of the picture."""
        x1, y1, x2, y2 = self.things[number].box
        width, height = self.scene.size
        return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height

    def reference(self, number: int, rng: Random, *, colourless: bool = False) -> Reference | None:
        """A name for an object that fits no other one; `colourless` where the colour must not be told."""
        thing = self.things[number]
        if thing.kind in self.murky:
            return None
        found = []
        for colour in (None,) if colourless else (None, thing.colour):
            alike = [
                rival for rival, it in enumerate(self.things) if it.kind == thing.kind and colour in (None, it.colour)
            ]
            if len(alike) == 1:
                found.append(Reference(thing.kind, colour))
            elif side := self._side(number, alike):
                found.append(Reference(thing.kind, colour, side))
        plain = [it for it in found if it.side is None]
        return rng.choice(plain or found) if found else None

    def _side(self, number: int, alike: list[int]) -> str | None:
        """Whether an object stands clearly to the left, or right, of all others alike."""
        own = self.centre(number)[0]
        others = [self.centre(rival)[0] for rival in alike if rival != number]
        if own < min(others) - 0.06:
            return "left"
        return "right" if own > max(others) + 0.06 else None

    @cached_property
    def relations(self) -> list[tuple[int, str, int]]:
        """What clearly holds between two objects: (3, "left", 5) says that 3 is to the left of 5."""
        height = self.scene.size[1]
        holds = []
        for one, two in permutations(self.settled(self.clear), 2):
            a, b = self.things[one].box, self.things[two].box
            shared = min(a[2], b[2]) - max(a[0], b[0])
            apart = self.centre(two)[0] - self.centre(one)[0]
            if apart > 0.10 and shared < 0.25 * min(a[2] - a[0], b[2] - b[0]):
                holds += [(one, "left", two), (two, "right", one)]
            airborne = in_sky(self.things[one].kind) or in_sky(self.things[two].kind)
            if airborne and a[3] < b[1] + 0.01 * height:
                holds += [(one, "above", two), (two, "below", one)]
            if self.scene.hides.get((one, two), 0.0) > 0.06:
                holds += [(one, "front", two), (two, "behind", one)]
        return holds
