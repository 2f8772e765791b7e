"""VQAv2, GQA and TextVQA: each from a small file in its published form to a score computed by hand."""

from __future__ import annotations

import json

import pytest
from benchmark_files import WORD, Write, gqa_file, read, score, textvqa_file, vqa_files

from paddle_llava.errors import LlavaError


def test_vqav2(write: Write) -> None:
    asked, answered = vqa_files(write)
    questions = read("vqav2", answered, asked)
    assert questions[0].prompt == f"What colour is the bus?\n{WORD}"
    assert questions[0].images == (str(asked.parent / "COCO_val2014_000000000042.jpg"),)
    # Three people said red: each of them leaves two (2/3), each of the seven others leaves three (1). Two said 2: each
    # of them leaves one (1/3), each of the eight others two (2/3).
    scores = score("vqav2", questions, "Red", "No.", "two")
    assert list(scores.per_sample.values()) == pytest.approx([0.9, 1.0, 0.6])
    assert scores.figures == {"accuracy": pytest.approx(250 / 3)}
    assert scores.groups["Answer type"] == pytest.approx({"number": 60.0, "other": 90.0, "yes/no": 100.0})
    assert score("vqav2", questions, "Red", None, None).figures["accuracy"] == pytest.approx(30.0)


def test_vqav2_without_answers_cannot_be_scored(write: Write) -> None:
    asked, answered = vqa_files(write)
    with pytest.raises(LlavaError, match="annotations, without which nothing can be scored"):
        read("vqav2", asked)
    with pytest.raises(LlavaError, match="of questions"):
        read("vqav2", answered)
    content = json.loads(answered.read_text())
    del content["annotations"][1]
    answered.write_text(json.dumps(content))
    with pytest.raises(LlavaError, match=r"questions, item 2: question 42001 has no annotation"):
        read("vqav2", asked, answered)


def test_gqa(write: Write) -> None:
    path = gqa_file(write)
    questions = read("gqa", path)
    assert questions[0].prompt == f"Is it overcast?\n{WORD}"
    assert questions[1].images == (str(path.parent / "n161313.jpg"),)
    scores = score("gqa", questions, "No.", "Woman", "it is clean")
    assert scores.figures == {"accuracy": pytest.approx(200 / 3)}
    assert scores.groups["Kind"] == {"binary": 100.0, "open": 50.0}
    assert scores.groups["Structural type"] == {"choose": 0.0, "query": 100.0, "verify": 100.0}


def test_textvqa_without_ocr_tokens(write: Write) -> None:
    questions = read("textvqa", textvqa_file(write))
    assert questions[0].prompt == f"What is the brand of this camera?\n{WORD}"
    scores = score("textvqa", questions, "Dakota", "Anna's")
    assert scores.figures == {"accuracy": 100.0}
    assert scores.notes == ("without OCR tokens in the prompt",)


def test_textvqa_with_ocr_tokens(write: Write) -> None:
    words = [{"word": word, "bounding_box": {}} for word in ("DAKOTA", "DIGITAL")]
    tokens = write(
        "TextVQA_Rosetta_OCR_v0.2_val.json",
        {"data": [{"image_id": "003a8ae2ef43b901", "ocr_info": words}, {"image_id": "b9dc", "ocr_info": []}]},
    )
    prompts = [
        f"What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL\n{WORD}",
        f"Whose?\nReference OCR token: \n{WORD}",
    ]
    questions = read("textvqa", textvqa_file(write), tokens)
    assert [question.prompt for question in questions] == prompts
    own = [
        {
            "question_id": image,
            "image": f"{image}.jpg",
            "text": prompt.replace("DIGITAL", "Pire"),
            "category": "default",
        }
        for image, prompt in zip(("003a8ae2ef43b901", "b9dc"), prompts, strict=True)
    ]
    questions = read("textvqa", textvqa_file(write), write("llava_textvqa_val_v051_ocr.jsonl", own))
    assert questions[0].prompt == prompts[0].replace("DIGITAL", "Pire")
    assert score("textvqa", questions, "x", "y").notes == (
        "with OCR tokens in the prompt, as LLaVA 1.5's published score",
    )
    with pytest.raises(LlavaError, match="no prompt for picture b9dc"):
        read("textvqa", textvqa_file(write), write("llava_textvqa_val_v051_ocr.jsonl", own[:1]))
