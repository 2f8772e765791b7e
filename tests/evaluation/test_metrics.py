"""The metrics against the figures of the published evaluations, and what they do where those fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.choices import (
    circular_accuracy,
    parse_choice,
    rotations,
    science_qa_choice,
    seed_choice,
)
from paddle_llava.evaluation.metrics.grounding import answer_iou, answered_box, grounding_scores
from paddle_llava.evaluation.metrics.mme import MmeAnswer, mme_scores, mme_totals, parse_mme_answer
from paddle_llava.evaluation.metrics.vqa import (
    normalise_answer,
    normalise_textvqa_answer,
    textvqa_accuracy,
    vqa_accuracy,
)
from paddle_llava.evaluation.metrics.yes_no import parse_yes_no, pope_answer, pope_scores
from paddle_llava.processing.boxes import format_box, to_padded_frame

FIXTURES = Path(__file__).with_name("fixtures")


def fixture(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


# --- VQA ------------------------------------------------------------------------------------------


def test_vqa_accuracies_equal_the_published_evaluations() -> None:
    cases = fixture("vqa.json")["cases"]
    assert len(cases) >= 300
    assert {round(case["vqa"], 1) for case in cases} >= {0.0, 0.3, 0.6, 0.9, 1.0}
    for case in cases:
        answer, annotators = case["answer"], case["annotators"]
        assert normalise_answer(answer) == case["normalised"], case
        assert normalise_textvqa_answer(answer) == case["textvqa_normalised"], case
        assert vqa_accuracy(answer, annotators) == pytest.approx(case["vqa"], abs=1e-9), case
        assert textvqa_accuracy(answer, annotators) == pytest.approx(case["textvqa"], abs=1e-9), case


def test_every_contraction_is_mended_as_published() -> None:
    table = fixture("vqa.json")["contractions"]
    assert len(table) > 100
    assert {word: normalise_answer(word) for word in table} == table


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_what_agreement_is_worth(agreeing: int, accuracy: float) -> None:
    annotators = ["cat"] * agreeing + [f"dog {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("The cat.", annotators) == pytest.approx(accuracy if agreeing < 10 else 0.0)
    assert textvqa_accuracy("The cat.", annotators) == pytest.approx(accuracy)
    assert vqa_accuracy("cat", []) == 0.0


@given(st.text(max_size=40), st.lists(st.text(max_size=10), max_size=10))
def test_any_answer_has_an_accuracy(answer: str, annotators: list[str]) -> None:
    assert 0 <= vqa_accuracy(answer, annotators) <= 1
    assert 0 <= textvqa_accuracy(answer, annotators) <= 1


# --- yes and no -----------------------------------------------------------------------------------


def test_pope_equals_the_published_evaluation() -> None:
    groups = fixture("answers.json")["pope"]
    assert sum(len(group["answers"]) for group in groups) >= 200
    for group in groups:
        assert [pope_answer(text) for text in group["answers"]] == group["read"]
        scores = pope_scores(group["answers"], group["labels"])
        assert scores == pytest.approx({name: group[name] for name in scores})
        assert len(scores) == 5


def test_pope_of_one_sided_answers_is_no_error() -> None:
    assert pope_scores(["no", "no"], [True, False]) == {
        "accuracy": 0.5,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "yes_share": 0.0,
    }
    with pytest.raises(LlavaError, match="1 answers for 2"):
        pope_scores(["yes"], [True, False])


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", True), (" yes, it is.", True), ("**No**", False), ("NO.", False), ("nothing", None), ("", None)],
)
def test_yes_or_no(text: str, said: bool | None) -> None:
    assert parse_yes_no(text) is said


def test_mme_equals_the_published_evaluation() -> None:
    mme = fixture("answers.json")["mme"]
    assert len(mme["answers"]) >= 200
    names = {True: "yes", False: "no", None: "other"}
    assert [names[parse_mme_answer(text)] for _, _, text, _, _ in mme["answers"]] == [row[4] for row in mme["answers"]]
    scores = mme_scores(MmeAnswer(*row[:4]) for row in mme["answers"])
    assert list(scores) == list(mme["scores"])
    for subtask, score in scores.items():
        expected = mme["scores"][subtask]
        assert (score.acc, score.acc_plus, score.score) == pytest.approx(tuple(expected.values()))
    totals = mme_totals(scores)
    perception = sum(mme["scores"][name]["score"] for name in ("existence", "OCR", "color"))
    cognition = sum(mme["scores"][name]["score"] for name in ("code_reasoning", "commonsense_reasoning"))
    assert (totals["perception"], totals["cognition"]) == pytest.approx((perception, cognition))


def test_mme_needs_both_questions_of_a_picture() -> None:
    with pytest.raises(LlavaError, match=r"count: a\.jpg has 1 of its two"):
        mme_scores([MmeAnswer("count", "a.jpg", "Yes", True)])
    score = mme_scores([MmeAnswer("count", "a.jpg", "Yes", True), MmeAnswer("count", "a.jpg", "Maybe", False)])["count"]
    assert (score.acc, score.acc_plus, score.neither) == (0.5, 0.0, 1)


# --- choices --------------------------------------------------------------------------------------


def test_science_qa_equals_the_published_evaluation() -> None:
    cases = fixture("answers.json")["science_qa"]
    assert len(cases) >= 200
    for text, options, place in cases:
        assert science_qa_choice(text, options) == ("ABCDE"[place] if place >= 0 else None), (text, options)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B) a dog", "B"),
        ("B. a dog", "B"),
        ("The answer is C!", "C"),
        ("a dog", "B"),
        ("It is A Dog.", "B"),
        ("A", "A"),
        ("A fine big dog sits", None),
        ("A or B", None),
        ("D", None),
        ("", None),
        ("a dog and a cat", None),
    ],
)
def test_the_option_an_answer_names(text: str, letter: str | None) -> None:
    assert parse_choice(text, ["a cat", "a dog", "a bird"]) == letter


def test_seed_takes_the_letter_alone() -> None:
    assert [seed_choice(text) for text in ("B", "B.", "b", "E", "AB", "")] == ["B", None, None, None, None, None]


@given(st.lists(st.text(min_size=1, max_size=3), min_size=2, max_size=6, unique=True), st.data())
def test_every_round_has_the_same_right_option(options: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(options) - 1))
    rounds = rotations(options, "ABCDEF"[place])
    assert rounds[0] == (options, "ABCDEF"[place])
    assert len({tuple(order) for order, _ in rounds}) == len(options)
    assert {order["ABCDEF".index(letter)] for order, letter in rounds} == {options[place]}


def test_circular_evaluation_wants_every_round() -> None:
    rounds = {"1": [True, True, True], "2": [True, False, True], "3": [False, True], "4": [True, True]}
    assert circular_accuracy(rounds) == {"circular": 0.5, "vanilla": 0.75}
    assert circular_accuracy({}) == {"circular": 0.0, "vanilla": 0.0}


# --- boxes ----------------------------------------------------------------------------------------


def test_iou_of_answers_equals_pycocotools() -> None:
    cases = fixture("grounding.json")["cases"]
    assert len(cases) >= 200
    ious = [answer_iou(text, tuple(truth), width, height) for text, truth, width, height, _ in cases]
    assert ious == pytest.approx([case[-1] for case in cases], abs=1e-8)
    scores = grounding_scores(ious)
    assert scores["accuracy"] == sum(case[-1] >= 0.5 for case in cases) / len(cases)
    assert scores["mean_iou"] == pytest.approx(sum(case[-1] for case in cases) / len(cases))


@given(st.integers(8, 2000), st.integers(8, 2000), st.data())
def test_the_true_box_as_an_answer_is_a_hit(width: int, height: int, data: st.DataObject) -> None:
    x1, y1 = data.draw(st.integers(0, width // 2)), data.draw(st.integers(0, height // 2))
    truth = (x1, y1, width, height)
    text = format_box(to_padded_frame(truth, width, height))
    box = answered_box(text, width, height)
    if box is not None:  # a sliver may be written as nothing
        assert box == pytest.approx(truth, abs=0.005 * max(width, height) + 1e-6)


def test_an_answer_without_a_box_has_no_iou() -> None:
    assert answered_box("a red bus", 10, 10) is None
    assert answer_iou("a red bus", (0, 0, 5, 5), 10, 10) == 0.0
    assert grounding_scores([0.5, 0.4]) == {"accuracy": 0.5, "mean_iou": 0.45}
    assert grounding_scores([]) == {"accuracy": 0.0, "mean_iou": 0.0}
