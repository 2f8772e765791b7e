"""COCO captions, RefCOCO and own data: each from a small file in its published form to a score computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import Write, captions_file, custom_file, read, refer_files, score

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics import captions as captions_metric


def test_coco_caption(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_metric, "java_tokenizer", lambda: None)
    questions = read("coco-caption", captions_file(write))
    assert [question.id for question in questions] == ["391895", "522418"]
    assert questions[0].prompt == "Provide a one-sentence caption for the provided image."
    assert questions[0].references == ("A man rides a motorbike.", "A motorbike on a dirt road.")
    # Word for word one of the references: BLEU and ROUGE-L are whole. CIDEr of a caption that is its only reference is
    # 10; of one that is the first of two, half of 10 and half of what the second shares.
    scores = score("coco-caption", questions, "A man rides a motorbike", "a woman cuts a cake")
    assert scores.figures["BLEU-4"] == pytest.approx(100.0)
    assert scores.figures["ROUGE-L"] == pytest.approx(100.0)
    assert scores.per_sample["522418"] == pytest.approx(1.0)
    assert 0.5 < scores.per_sample["391895"] < 0.6
    failed = score("coco-caption", questions, None, "a woman cuts a cake")
    assert failed.per_sample["391895"] == 0.0


def test_coco_caption_of_karpathys_split(write: Write) -> None:
    images = [
        {
            "cocoid": number,
            "filename": f"{number}.jpg",
            "filepath": "val2014",
            "split": split,
            "sentences": [{"raw": "A."}],
        }
        for number, split in ((1, "test"), (2, "train"), (3, "test"))
    ]
    questions = read("coco-caption", write("dataset_coco.json", {"images": images, "dataset": "coco"}))
    assert [(question.id, question.references) for question in questions] == [("1", ("A.",)), ("3", ("A.",))]


def test_refcoco_from_jsonl(write: Write) -> None:
    image = "data/coco/train2014/COCO_train2014_000000581857.jpg"
    record = {"image": image, "width": 640, "height": 480}
    path = write(
        "refcoco_testA.jsonl",
        [
            {**record, "sent": "woman in white", "bbox": [64, 40, 320, 400]},
            {**record, "sent": "man", "bbox": [0, 0, 64, 80]},
        ],
    )
    questions = read("refcoco", path)
    asked = "Please provide the bounding box coordinate of the region this sentence describes: woman in white"
    assert questions[0].prompt == asked
    assert questions[0].images == (str(path.parent / "COCO_train2014_000000581857.jpg"),)
    # 640x480 in a square of 640: 80 above. 64/640, 120/640, 320/640, 480/640.
    assert questions[0].references == ("0.10, 0.19, 0.50, 0.75",)
    # The first is 64, 40, 320, 220 in pixels: half of the true box, exactly. The second lies apart.
    scores = score("refcoco", questions, "[0.1, 0.1875, 0.5, 0.46875]", "0.50, 0.50, 0.60, 0.60")
    assert scores.figures == {"accuracy": 50.0, "mean_iou": pytest.approx(25.0)}
    assert scores.groups["refcoco_testA"] == scores.figures
    assert score("refcoco", questions, None, "I see none").figures == {"accuracy": 0.0, "mean_iou": 0.0}


def test_refcoco_from_refer(write: Write, tmp_path: Path) -> None:
    questions = read("refcoco+", *refer_files(write, tmp_path))
    assert [question.id for question in questions] == ["val/10", "val/11", "testB/20"]
    assert questions[0].meta == {
        "split": "val",
        "phrase": "left man",
        "box": [10, 20, 60, 120],
        "width": 100,
        "height": 200,
    }
    # A square of 200 with 50 on each side: the box is (10 + 50)/200, 20/200, (60 + 50)/200, 120/200.
    scores = score("refcoco+", questions, "0.30, 0.10, 0.55, 0.60", "0, 0, 0.1, 0.1", "0.35, 0.10, 0.60, 0.60")
    assert scores.groups == {
        "val": {"accuracy": 50.0, "mean_iou": pytest.approx(50.0)},
        "testB": {"accuracy": 100.0, "mean_iou": pytest.approx(100.0)},
    }


class Malice:
    def __reduce__(self) -> Any:
        return print, ("this pickle ran code",)


def test_refcoco_runs_nothing_that_a_pickle_names(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LlavaError, match=r"refs\(unc\)\.p: refused: it names .*print"):
        read("refcoco", *refer_files(write, tmp_path, [Malice()]))
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"\x80\x04]", b"(lp0\nI99999999999999999999999x\n", b"Vtext\np0\n."])
def test_refcoco_refuses_a_damaged_pickle(write: Write, tmp_path: Path, content: bytes) -> None:
    refs, instances = refer_files(write, tmp_path)
    refs.write_bytes(content)
    with pytest.raises(LlavaError, match=r"refs\(unc\)\.p"):
        read("refcoco", refs, instances)


def test_custom_asks_every_turn_after_the_ones_before_it(write: Write) -> None:
    path = custom_file(write)
    first, second, third = questions = read("custom", path)
    assert (first.id, first.prompt, first.images) == (
        "mine/1/1",
        "What colour is the bus?",
        (str(path.parent / "bus.jpg"),),
    )
    assert (second.prompt, second.images) == ("Where is it?", first.images)
    assert second.history == (("What colour is the bus?", "Red."),)
    assert (third.history, third.images) == ((), ())
    # The box is 0.4 x 0.4; the answer's 0.4 x 0.3 lies in it, an IoU of 0.75. Of `Good day` one word of two is said,
    # and it is all that is said.
    scores = score("custom", questions, "a red", "[0.10, 0.10, 0.50, 0.40]", "good")
    assert scores.per_sample == {"mine/1/1": 1.0, "mine/1/2": 1.0, "mine/3/1": 0.0} or scores.per_sample == {
        "mine/1/1": 1.0,
        "mine/1/2": 1.0,
        "mine/2/1": 0.0,
    }
    assert scores.figures["exact"] == pytest.approx(200 / 3)
    assert scores.groups["Reference"] == {"box": 100.0, "text": 50.0}


BOX, FAR = "0.10, 0.10, 0.50, 0.50", "0.60, 0.60, 0.90, 0.90"


@pytest.mark.parametrize(
    ("reference", "answer", "is_right"),
    [
        ("红色，很大。", "红色,很大", True),
        ("红色！", "红色", True),
        ("红色", "蓝色", False),
        (BOX, "It is at [0.10, 0.10, 0.50, 0.45].", True),
        ("<box>(100,100),(500,500)</box>", BOX, True),
        (BOX, FAR, False),
        (f"{BOX}\n{FAR}", BOX, False),
        (f"{BOX}\n{FAR}", f"{BOX}\n{FAR}", True),
        (f"Two buses: [{BOX}] and [{FAR}].", f"Two buses: [{BOX}] and [0.60, 0.60, 0.90, 0.88]", True),
        (f"A red bus [{BOX}]", f"A blue bus [{BOX}]", False),
        ("3 buses", BOX, False),
    ],
)
def test_what_custom_takes_for_right(write: Write, reference: str, answer: str, is_right: bool) -> None:
    record = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": reference}]}
    questions = read("custom", write("own.json", [record]))
    assert score("custom", questions, answer).per_sample == {"own/1/1": float(is_right)}


def test_chinese_characters_after_digits_are_words_of_their_own(write: Write) -> None:
    record = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "3辆红车"}]}
    questions = read("custom", write("own.json", [record]))
    assert 0 < score("custom", questions, "3辆蓝车").figures["rouge_l"] < 100


def test_custom_refuses_pictures_amid_the_text(write: Write) -> None:
    record = {"images": ["a.jpg", "b.jpg"], "conversations": [["left: <image> right: <image>", "Both."]]}
    with pytest.raises(LlavaError, match=r"record 1 .*pictures must come before the first question"):
        read("custom", write("mine.jsonl", [record]))
