from __future__ import annotations

import pytest

from paddle_llava.demo.dialogues import Turn
from paddle_llava.demo.scoring import find_mentions, score


def turn(kind: str, answer: str, language: str = "en") -> Turn:
    return Turn("?", answer, kind, (), language)


@pytest.mark.parametrize(
    ("right", "given", "language", "exact"),
    [
        ("red", "Red.", "en", 1),
        ("red", "the red", "en", 1),
        ("red bus", "A red bus", "en", 1),
        ("red bus", "bus", "en", 0),
        ("red", "dark red", "en", 0),
        ("red", "", "en", 0),
        ("2", "two", "en", 1),
        ("1", "one", "en", 1),
        ("0", "zero", "en", 1),
        ("2", "12", "en", 0),
        ("yes", "Yes", "en", 1),
        ("yes", "no", "en", 0),
        ("in front", " In  front ", "en", 1),
        ("红色", "红色。", "zh", 1),
        ("2", "两", "zh", 1),
        ("2", "二", "zh", 1),
        ("是", "否", "zh", 0),
        ("左上方", "上方", "zh", 0),
    ],
)
def test_short_answers(right: str, given: str, language: str, exact: int) -> None:
    assert score(turn("colour", right, language), given) == {"exact": exact}


@pytest.mark.parametrize(
    ("given", "iou"),
    [
        ("0.00, 0.00, 0.50, 0.50", 1.0),
        ("[0.00, 0.00, 0.50, 0.40]", 0.8),
        ("0.50, 0.50, 1.00, 1.00", 0.0),
        ("0.00, 0.00, 0.25, 0.50", 0.5),
        ("on the left", 0.0),
        ("", 0.0),
        ("0.50, 0.50, 0.00, 0.00", 0.0),
    ],
)
def test_boxes(given: str, iou: float) -> None:
    marks = score(turn("box", "0.00, 0.00, 0.50, 0.50"), given)
    assert marks == {"iou": pytest.approx(iou), "hit": float(iou > 0.5)}


@pytest.mark.parametrize(
    ("text", "language", "mentions"),
    [
        ("There is a red bus and two white clouds.", "en", {("bus", "red"): 1, ("cloud", "white"): 2}),
        ("three people in red, an orange tree", "en", {("person", "red"): 3, ("tree", "orange"): 1}),
        ("A traffic light; the street lamps", "en", {("traffic light", None): 1, ("street lamp", None): 1}),
        ("a business car-free street with scars", "en", {("car", None): 1}),
        ("一辆红色的公交车和两朵白色的云", "zh", {("bus", "red"): 1, ("cloud", "white"): 2}),
        ("三个穿红色衣服的人、橙色树", "zh", {("person", "red"): 3, ("tree", "orange"): 1}),
        ("有3辆汽车和路灯", "zh", {("car", None): 3, ("street lamp", None): 1}),
        ("", "zh", {}),
    ],
)
def test_mentions(text: str, language: str, mentions: dict[object, int]) -> None:
    assert find_mentions(text, language) == mentions


PRESENT = (("bus", "red"), ("tree", "green"), ("tree", "green"), ("bird", "blue"))


@pytest.mark.parametrize(
    ("answer", "named", "invented", "mentions"),
    [
        ("A red bus and two green trees.", 3, 0, 3),
        ("A red bus, a green tree, a green tree and a blue bird.", 3, 0, 4),
        ("A red bus and a green tree.", 2, 0, 2),
        ("A blue bus and three green trees.", 2, 2, 4),
        ("A bus with two trees.", 0, 0, 3),
        ("Two buses and a red bus.", 1, 2, 3),
        ("A red car, a yellow dog.", 0, 2, 2),
        ("", 0, 0, 0),
    ],
)
def test_descriptions(answer: str, named: int, invented: int, mentions: int) -> None:
    asked = Turn("?", "…", "describe", (0, 1, 2), "en", present=PRESENT)
    assert score(asked, answer) == {"named": named, "required": 3, "invented": invented, "mentions": mentions}
