"""The page of an evaluation: what stands on it, and that nothing quoted on it is more than text."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from html_page import Page
from paddle_llava.evaluation import gallery
from paddle_llava.evaluation.gallery import CARDS, chosen
from paddle_llava.evaluation.predictions import Run
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.report import group_key, render_report, write_report
from paddle_llava.processing.boxes import format_box, to_padded_frame

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x00\ud800"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.new("RGB", (1000, 500), "navy").save(path)
    return path


def prediction(
    id: str, answer: str, *, images: tuple[str, ...] = (), error: str | None = None, **meta: Any
) -> Prediction:
    return Prediction(Question(id, f"question {id}?", images, ("a bus",), meta), answer, error)


def grounded(picture: Path) -> tuple[Scores, list[Prediction]]:
    """One box that fits by half, and one question that is not about boxes."""
    truth = (100, 100, 300, 200)
    said = format_box(to_padded_frame((200, 100, 400, 200), 1000, 500))
    question = Question("b1", "Where is it?", (str(picture),), (format_box(to_padded_frame(truth, 1000, 500)),))
    boxed = Prediction(Question(**{**vars(question), "meta": {"box": list(truth), "split": "val"}}), said)
    plain = prediction("p1", "0.1, 0.1, 0.2, 0.2", images=(str(picture),), split="test")
    return Scores("accuracy", {"accuracy": 0.0}, {"b1": 0.0, "p1": 0.0}), [boxed, plain]


def test_boxes_are_drawn_over_their_picture_with_the_iou(picture: Path) -> None:
    page = Page(render_report(Run("refcoco", "m", 2), *grounded(picture)))
    assert [box["style"] for box in page.with_class("truth") if box.get("style")] == [
        "left:10.00%;top:20.00%;width:20.00%;height:20.00%"
    ]
    assert [box["style"] for box in page.with_class("said") if box.get("style")] == [
        "left:20.00%;top:20.00%;width:20.00%;height:20.00%"
    ]
    assert page.text["span"] == "IoU 0.33"
    assert len(page.of("img")) == 2


def test_pictures_are_small_jpegs_within_the_page(picture: Path) -> None:
    page = Page(render_report(Run("refcoco", "m", 2), *grounded(picture)))
    for image in page.of("img"):
        kind, _, content = str(image["src"]).partition(",")
        assert kind == "data:image/jpeg;base64"
        thumbnail = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (320, 160))


def test_nothing_quoted_is_markup_or_script(tmp_path: Path, picture: Path) -> None:
    meta = {"type": EVIL, EVIL: EVIL}
    question = Question(EVIL, EVIL, (str(picture), EVIL), (EVIL, EVIL), meta)
    scores = Scores(EVIL, {EVIL: 50.0}, {EVIL: 1.0}, {EVIL: {EVIL: 100.0}}, (EVIL,))
    path = tmp_path / "report.html"
    predictions = [Prediction(question, EVIL), Prediction(Question("2", EVIL), "", EVIL)]
    write_report(path, Run("custom", EVIL, 2, {EVIL: EVIL}), scores, predictions)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.of("script")) == 1
    assert len(page.of("img")) == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.of("article")[0]["data-type"] == EVIL.replace("\x00", "\x00").replace("\ud800", "?")
    assert not list(tmp_path.glob("*.tmp"))


def test_only_its_own_script_may_run_and_nothing_is_fetched() -> None:
    text = render_report(Run("pope", "m", 1), Scores("f1", {"f1": 1.0}, {"1": 1.0}), [prediction("1", "yes")])
    page = Page(text)
    digest = base64.b64encode(hashlib.sha256(page.text["script"].encode()).digest()).decode()
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv"))
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert "@import" not in text
    assert "url(" not in text


def test_measured_stands_beside_published_with_an_interval() -> None:
    predictions = [prediction(str(number), "a bus") for number in range(100)]
    scores = Scores("accuracy", {"accuracy": 60.0}, {str(number): float(number < 60) for number in range(100)})
    page = render_report(Run("vqav2", "llava-hf/llava-1.5-7b-hf", 100), scores, predictions)
    assert "published, llava-1.5-7b" in page
    assert "78.50" in page
    assert "-18.50" in page
    low, high = map(float, re.search(r'class="interval">([\d.]+) to ([\d.]+)<', page).groups())  # type: ignore[union-attr]
    assert low == pytest.approx(60 - 1.96 * 4.9, abs=1.6)
    assert high == pytest.approx(60 + 1.96 * 4.9, abs=1.6)
    assert "published" not in render_report(Run("vqav2", "mine", 100), scores, predictions).partition("<h2>Scores")[2]


def test_a_figure_that_is_no_mean_has_no_interval_but_the_mean_has() -> None:
    predictions = [prediction(str(number), "a bus") for number in range(10)]
    scores = Scores("CIDEr", {"CIDEr": 110.0}, {str(number): number / 10 for number in range(10)})
    page = render_report(Run("coco-caption", "m", 10), scores, predictions)
    rows = re.findall(r'<tr><td>([^<]+)</td><td class="number">([\d.]+)</td><td class="interval">([^<]*)<', page)
    assert [(name, value, bool(interval)) for name, value, interval in rows] == [
        ("CIDEr", "110.00", False),
        ("mean score of a question", "45.00", True),
    ]


def test_types_stand_in_one_table_with_their_intervals() -> None:
    predictions = [prediction(str(number), "x", kind=("colour", "count")[number % 2]) for number in range(40)]
    per_sample = {str(number): float(number % 4 == 0) for number in range(40)}
    groups = {"colour": {"exact": 0.5, "new": 0.1}, "count": {"exact": 0.0}}
    scores = Scores("exact", {"exact": 0.25}, per_sample, groups)
    page = render_report(Run("street", "m", 40), scores, predictions)
    table = re.search(r"<h2>By type</h2>(.*?)</section>", page, re.DOTALL)
    assert table is not None
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table[1].split("<tr>")[1:]]
    assert rows[0] == ["", "exact", "new", "questions"]
    assert [row[0] for row in rows[1:]] == ["colour", "count"]
    assert re.fullmatch(r"0\.5000<small>0\.\d+ to 0\.\d+</small>", rows[1][1])
    assert rows[1][2:] == ["0.1000", "20"]
    assert rows[2][2:] == ["", "20"]
    assert {article["data-type"] for article in Page(page).of("article")} == {"colour", "count"}
    assert len(Page(page).of("option")) == 3


def test_the_gallery_is_bounded_and_shows_both_kinds_and_all_types() -> None:
    predictions = [prediction(str(number), "x", kind=f"kind {number % 7}") for number in range(2000)]
    mostly_right = {str(number): float(number % 50 > 0) for number in range(2000)}
    cards = chosen(predictions, mostly_right, "kind")
    assert len(cards) == CARDS
    assert sum(not card.is_right for card in cards) == 40
    assert {card.type for card in cards if card.is_right} == {f"kind {number}" for number in range(7)}
    assert [int(card.prediction.id) for card in cards] == sorted(int(card.prediction.id) for card in cards)
    all_wrong = dict.fromkeys(mostly_right, 0.0)
    assert len(chosen(predictions, all_wrong, "kind")) == CARDS
    assert len(chosen(predictions[:5], all_wrong, "kind")) == 5
    assert chosen(predictions, {}, "kind") == []


def test_a_picture_that_is_gone_and_a_failed_answer_are_told() -> None:
    failed = prediction("1", "", images=("nowhere.png",), error="nowhere.png: no such file")
    scores = Scores("f1", {"f1": 0.0}, {"1": 0.0})
    page = Page(render_report(Run("pope", "m", 1), scores, [failed]))
    assert "no answer: nowhere.png" in page.text["em"]
    assert not page.of("img")
    assert page.of("article")[0]["data-answer"] == "wrong"


def test_pictures_take_no_longer_than_they_may(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle_llava.evaluation.report.SECONDS_FOR_PICTURES", -1)
    monkeypatch.setattr(gallery, "load_image", lambda source: pytest.fail("time is up"))
    page = Page(render_report(Run("refcoco", "m", 2), *grounded(picture)))
    assert len(page.of("article")) == 2


def test_no_prediction_and_no_figure_make_a_page() -> None:
    assert Page(render_report(Run("pope", "m", 0), Scores("f1", {}, {}), [])).of("main")
    assert group_key(["x"], []) is None
