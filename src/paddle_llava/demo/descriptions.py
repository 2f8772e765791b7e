"""A scene in words: a description, a caption, and a list of everything with its box."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from paddle_llava.demo.kinds import KINDS
from paddle_llava.demo.naming import Language, counted, listed, named, place_word, time_word
from paddle_llava.demo.scenes import Scene, SceneObject
from paddle_llava.processing.boxes import format_box, to_padded_frame

# Shares of the picture that an object's box covers. What lies between the two may be told or left out.
DESCRIBED = 0.02
LARGE = 0.03

_TIMES = {"day": "by day", "evening": "in the evening"}
_BEFORE_PLACE = {"street": "on a", "park": "in a", "river": "by a"}
AT_PLACE = {"street": "街道上", "park": "公园里", "river": "河边"}


def box_share(scene: Scene, thing: SceneObject) -> float:
    """The part of the picture that a thing's box covers, 0 to 1."""
    x1, y1, x2, y2 = thing.box
    return (x2 - x1) * (y2 - y1) / (scene.size[0] * scene.size[1])


def large_objects(scene: Scene) -> list[int]:
    """Numbers of the objects that a description must name."""
    return [number for number, thing in enumerate(scene.objects) if thing.clear and box_share(scene, thing) >= LARGE]


def description(scene: Scene, language: Language) -> str:
    """Place and time, what stands on the ground, what is in the sky; each from left to right, with colours."""
    things = described(scene)
    ground = [thing for thing in things if not in_sky(thing.kind)]
    sky = [thing for thing in things if in_sky(thing.kind)]
    if language == "zh":
        sentences = [f"这张照片展示了{time_word(scene.time, 'zh')}的{place_word(scene.place, 'zh')}。"]
        if ground:
            names = _counted_runs(ground, "zh")
            sentences.append(f"{'从左到右' if len(names) > 1 else '图中'}有{listed(names, 'zh')}。")
        if sky:
            sentences.append(f"天空中有{listed(_counted_runs(sky, 'zh'), 'zh')}。")
        return "".join(sentences)
    sentences = [f"The picture shows a {scene.place} {_TIMES[scene.time]}."]
    if ground:
        names = _counted_runs(ground, "en")
        there = f"{'From left to right there' if len(names) > 1 else 'There'} {_is(names[0])}"
        sentences.append(f"{there} {listed(names, 'en')}.")
    if sky:
        names = _counted_runs(sky, "en")
        sentences.append(f"In the sky there {_is(names[0])} {listed(names, 'en')}.")
    return " ".join(sentences)


def caption(scene: Scene, language: Language) -> str:
    """One sentence that names the described objects from left to right: `A red bus and a tree on a street by day.`"""
    names = _counted_runs(described(scene), language)
    if language == "zh":
        where = f"{time_word(scene.time, 'zh')}的{AT_PLACE[scene.place] if names else place_word(scene.place, 'zh')}"
        return f"{where}有{listed(names, 'zh')}。" if names else f"{where}。"
    if not names:
        return f"A {scene.place} {_TIMES[scene.time]}."
    text = f"{listed(names, 'en')} {_BEFORE_PLACE[scene.place]} {scene.place} {_TIMES[scene.time]}."
    return text[0].upper() + text[1:]


def scene_as_text(scene: Scene, language: Language) -> str:
    """Place, time and every clear object with its box in the padded frame, from far to near.

    `street, day. red bus 0.23, 0.33, 0.79, 0.78. green tree 0.10, 0.20, 0.30, 0.50.`
    """
    items = [
        f"{named(thing.kind, thing.colour, language)} {padded_box(scene, number)}"
        for number, thing in enumerate(scene.objects)
        if thing.clear
    ]
    comma, stop, end = ("，", "。", "。") if language == "zh" else (", ", ". ", ".")
    head = f"{place_word(scene.place, language)}{comma}{time_word(scene.time, language)}"
    return stop.join([head, *items]) + end


def mentions(scene: Scene, language: Language, form: str) -> list[tuple[str, tuple[int, ...]]]:
    """What a text names one after another, and the objects meant; `form` is "describe", "caption" or "list"."""
    if form == "list":
        return [(padded_box(scene, number), (number,)) for number, thing in enumerate(scene.objects) if thing.clear]
    things = described(scene)
    if form == "describe":
        things = sorted(things, key=lambda thing: in_sky(thing.kind))
    found = []
    for _, part in groupby(things, key=lambda thing: form == "describe" and in_sky(thing.kind)):
        for like, run in groupby(part, key=lambda thing: (thing.kind, thing.colour)):
            numbers = tuple(scene.objects.index(thing) for thing in run)
            found.append((counted(*like, len(numbers), language), numbers))
    return found


def padded_box(scene: Scene, number: int) -> str:
    """The box of an object as answers write it: `0.23, 0.33, 0.79, 0.78`."""
    return format_box(to_padded_frame(scene.objects[number].box, *scene.size))


def in_sky(kind: str) -> bool:
    return KINDS[kind].strips == ("sky",)


def described(scene: Scene) -> list[SceneObject]:
    """What a description names, from left to right."""
    things = [thing for thing in scene.objects if thing.clear and box_share(scene, thing) >= DESCRIBED]
    return sorted(things, key=lambda thing: thing.box[0] + thing.box[2])


def _counted_runs(things: Sequence[SceneObject], language: Language) -> list[str]:
    """`two green trees` for like things side by side."""
    runs = groupby(things, key=lambda thing: (thing.kind, thing.colour))
    return [counted(*like, len(list(run)), language) for like, run in runs]


def _is(first: str) -> str:
    return "is" if first.startswith(("a ", "an ")) else "are"
