from __future__ import annotations

import hashlib
import subprocess
import sys
from random import Random

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from paddle_llava.demo.backdrop import Ground
from paddle_llava.demo.composition import Placed
from paddle_llava.demo.document import BUS_BOX, document_scene
from paddle_llava.demo.kinds import HELDOUT_PAIRS, KINDS
from paddle_llava.demo.pen import COLOURS, Pen
from paddle_llava.demo.scenes import Scene, draw_scene, paint
from paddle_llava.processing.boxes import format_box, to_padded_frame

PICTURES = ["e48fc85b32f93b04", "377eaf57a4c89606", "bd45c8a7a9854e98"]
DOCUMENT = "1e509ed99b6a0c70"
SPLITS = ("train", "heldout")
GROUND = Ground("street", "day", 0.45, 0.55, 0.85)


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def facts(scene: Scene) -> object:
    return scene.objects, scene.place, scene.time, scene.hides, scene.labels.tobytes(), scene.image.tobytes()


def alone(thing: Placed, size: tuple[int, int] = (120, 90)) -> Scene:
    return paint(GROUND, [thing], size, "train", Random(1))


def test_a_seed_gives_the_same_scene_in_any_process() -> None:
    code = (
        "from paddle_llava.demo.scenes import draw_scene;import hashlib;"
        "print(*[hashlib.sha256(draw_scene(s).image.tobytes()).hexdigest()[:16] for s in (0, 1, 7)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "17"}
    )
    assert run.stdout.split() == [digest(draw_scene(seed).image) for seed in (0, 1, 7)]
    assert facts(draw_scene(5)) == facts(draw_scene(5))


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 12, reason="older Pillows fill some polygons otherwise")
def test_scenes_are_those_of_the_trained_model() -> None:
    """A change here changes what the embedded model was trained and measured on."""
    assert [digest(draw_scene(seed, size=(96, 96)).image) for seed in range(3)] == PICTURES
    assert digest(document_scene((112, 84)).image) == DOCUMENT


def test_seeds_and_splits_differ() -> None:
    pictures = {digest(draw_scene(seed, size=(48, 48), split=s).image) for seed in range(40) for s in SPLITS}
    assert len(pictures) == 80


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(40, 160), st.integers(40, 160))
def test_boxes_and_shares_are_those_of_the_drawn_masks(seed: int, width: int, height: int) -> None:
    scene = draw_scene(seed, size=(width, height))
    assert scene.image.size == (width, height)
    assert scene.labels.shape == (2 * height, 2 * width)
    assert set(np.unique(scene.labels)) - {0} == set(range(1, len(scene.objects) + 1))
    for number, thing in enumerate(scene.objects):
        rows, columns = np.nonzero(scene.labels == number + 1)
        assert thing.box == (
            columns.min() / 2,
            rows.min() / 2,
            (columns.max() + 1) / 2,
            (rows.max() + 1) / 2,
        )
        assert thing.area == pytest.approx(len(rows) / scene.labels.size)
        assert 0 < thing.visible <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_painted_is_what_is_labelled(kind: str) -> None:
    """The picture with a thing and the one without differ where its mask is, and (but for a shadow) only there."""
    (least, most), *_ = KINDS[kind].aspects
    box = (0.25, 0.10, 0.75, 0.10 + 0.5 * 120 / 90 / ((least + most) / 2))
    for seed in range(4):
        scene = alone(Placed(kind, "red", box, seed))
        empty = paint(GROUND, [], (120, 90), "train", Random(1))
        x1, y1, x2, y2 = ImageChops.difference(scene.image, empty.image).getbbox() or (0, 0, 0, 0)
        left, top, right, bottom = scene.objects[0].box
        assert y1 == int(top)
        if KINDS[kind].strips == ("sky",):
            assert (x1, x2, y2) == (int(left), -int(-right // 1), -int(-bottom // 1))
        assert (right - left) / 60 > 0.6, "a thing fills the box it is given"
        assert min(bottom, 90) / 90 > min(box[3], 1) * 0.85


def test_what_is_hidden_and_what_is_cut_off_is_measured() -> None:
    bus = Placed("bus", "red", (0.1, 0.3, 0.9, 0.7), 1)
    tree = Placed("tree", "green", (0.3, 0.2, 0.6, 0.9), 2)
    whole = np.count_nonzero(alone(bus).labels)
    scene = paint(GROUND, [tree, bus], (120, 90), "train", Random(1))
    assert [thing.kind for thing in scene.objects] == ["bus", "tree"], "far things first"
    left = np.count_nonzero(scene.labels == 1)
    assert scene.objects[0].visible == pytest.approx(left / whole)
    assert scene.hides == {(1, 0): pytest.approx((whole - left) / whole)}
    assert scene.objects[1].visible == 1

    half = alone(Placed("sun", "yellow", (-0.2, 0.1, 0.2, 0.5), 3)).objects[0]
    assert half.visible == pytest.approx(0.5, abs=0.03)
    assert not half.clear
    assert half.box[0] == 0


def test_wholly_hidden_things_are_not_of_the_scene() -> None:
    dog = Placed("dog", "brown", (0.45, 0.5, 0.50, 0.55), 1)
    bus = Placed("bus", "red", (0.1, 0.2, 0.9, 0.9), 1)
    car = Placed("car", "blue", (0.1, 0.92, 0.2, 0.99), 1)
    scene = paint(GROUND, [dog, bus, car], (120, 90), "train", Random(1))
    assert [thing.kind for thing in scene.objects] == ["bus", "car"]
    assert set(np.unique(scene.labels)) == {0, 1, 2}
    assert np.count_nonzero(scene.labels == 2) / scene.labels.size == pytest.approx(scene.objects[1].area)
    assert scene.hides == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3)])
def test_every_kind_can_be_tiny(kind: str, size: tuple[int, int]) -> None:
    pen = Pen(*size, "red", Random(0))
    KINDS[kind].draw(pen)
    assert pen.image.size == size
    assert set(pen.image.getchannel("A").tobytes()) <= {0, 255}


def test_variety_and_splits() -> None:
    train = [draw_scene(seed, size=(48, 48)) for seed in range(400)]
    heldout = [draw_scene(seed, size=(48, 48), split="heldout") for seed in range(200)]
    seen = {(thing.kind, thing.colour) for scene in train for thing in scene.objects}
    assert {kind for kind, _ in seen} == set(KINDS)
    assert {colour for _, colour in seen} == set(COLOURS)
    assert len(KINDS) >= 12
    assert len(COLOURS) >= 8
    assert not seen & HELDOUT_PAIRS
    new = [any((thing.kind, thing.colour) in HELDOUT_PAIRS for thing in scene.objects) for scene in heldout]
    assert 0.45 < np.mean(new) < 0.8
    assert {scene.place for scene in train} == {"street", "park", "river"}
    assert {scene.time for scene in train} == {"day", "evening"}
    unclear = [not thing.clear for scene in train for thing in scene.objects]
    assert 0.004 < np.mean(unclear) < 0.06


def test_a_side_alone_lets_the_seed_choose_the_shape() -> None:
    sizes = {draw_scene(seed, size=64).size for seed in range(60)}
    assert {(64, 64), (64, 48), (48, 64), (64, 36)} <= sizes
    assert all(max(size) == 64 for size in sizes)


def test_a_seed_is_the_same_scene_at_another_size() -> None:
    small, large = draw_scene(3, size=(96, 96)), draw_scene(3, size=(288, 288))
    assert [(it.kind, it.colour) for it in small.objects] == [(it.kind, it.colour) for it in large.objects]
    for one, other in zip(small.objects, large.objects, strict=True):
        assert np.array(one.box) * 3 == pytest.approx(np.array(other.box), abs=4)


def test_things_are_seen_from_afar_and_from_nearby() -> None:
    shares = [
        (x2 - x1) * (y2 - y1) / (scene.size[0] * scene.size[1])
        for scene in (draw_scene(seed, size=64) for seed in range(150))
        for x1, y1, x2, y2 in (thing.box for thing in scene.objects if thing.clear)
    ]
    assert np.quantile(shares, 0.1) < 0.02
    assert np.quantile(shares, 0.9) > 0.10
    assert 0.25 < max(shares) < 0.9 * 0.9


@pytest.mark.parametrize("size", [(448, 336), (224, 168), (112, 84)])
def test_the_bus_of_the_first_dialogue(size: tuple[int, int]) -> None:
    scene = document_scene(size)
    (bus,) = (thing for thing in scene.objects if thing.kind == "bus")
    assert bus.colour == "red"
    assert format_box(to_padded_frame(bus.box, *size)) == format_box(BUS_BOX) == "0.23, 0.33, 0.79, 0.78"
    assert all(thing.clear for thing in scene.objects)
    assert {"house", "dog", "cloud"} <= {thing.kind for thing in scene.objects}
    assert not {(thing.kind, thing.colour) for thing in scene.objects} & HELDOUT_PAIRS
