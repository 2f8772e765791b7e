"""Each benchmark, from a small file in its published form to a score computed by hand."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics import captions as captions_metric
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks import TASKS, load_task
from paddle_llava.evaluation.tasks.files import Data

Write = Callable[[str, Any], Path]
WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of the benchmark: text as it stands, a list of objects as JSONL, all else as JSON."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl") or name.startswith("coco_pope"):
            content = "".join(json.dumps(record) + "\n" for record in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def read(task: str, *paths: Path, image_folder: Path | None = None) -> list[Question]:
    return load_task(task).read(Data(paths, image_folder))


def score(task: str, questions: list[Question], *answers: str | None) -> Scores:
    """The task's scores when the model answers so; None is a question that failed."""
    predictions = [
        Prediction(question, answer or "", None if answer is not None else "no such picture")
        for question, answer in zip(questions, answers, strict=True)
    ]
    return load_task(task).score(predictions)


def vqa_files(write: Write) -> tuple[Path, Path]:
    questions = [
        {"image_id": 42, "question": "What colour is the bus?", "question_id": 42000},
        {"image_id": 42, "question": "Is it raining?", "question_id": 42001},
        {"image_id": 73, "question": "How many dogs?", "question_id": 73000},
    ]
    said = {
        42000: ("other", "what color", ["red"] * 3 + ["dark red"] * 7),
        42001: ("yes/no", "is it", ["no"] * 10),
        73000: ("number", "how many", ["2"] * 2 + ["3"] * 8),
    }
    annotations = [
        {
            "question_id": number,
            "image_id": number // 1000,
            "answer_type": kind,
            "question_type": start,
            "multiple_choice_answer": answers[-1],
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1} for answer in answers],
        }
        for number, (kind, start, answers) in said.items()
    ]
    return (
        write("v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": questions}),
        write("v2_mscoco_val2014_annotations.json", {"data_subtype": "val2014", "annotations": annotations}),
    )


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
    def record(question: str, answer: str, structural: str) -> dict[str, Any]:
        types = {"structural": structural, "semantic": "attr", "detailed": "x"}
        return {"question": question, "imageId": "n161313", "answer": answer, "isBalanced": True, "types": types}

    path = write(
        "testdev_balanced_questions.json",
        {
            "201307251": record("Is it overcast?", "no", "verify"),
            "201640614": record("Who is wearing the dress?", "woman", "query"),
            "202225914": record("Is it clean or dirty?", "clean", "choose"),
        },
    )
    questions = read("gqa", path)
    assert questions[0].prompt == f"Is it overcast?\n{WORD}"
    assert questions[1].images == (str(path.parent / "n161313.jpg"),)
    scores = score("gqa", questions, "No.", "Woman", "it is clean")
    assert scores.figures == {"accuracy": pytest.approx(200 / 3)}
    assert scores.groups["Kind"] == {"binary": 100.0, "open": 50.0}
    assert scores.groups["Structural type"] == {"choose": 0.0, "query": 100.0, "verify": 100.0}


def textvqa_file(write: Write) -> Path:
    records = [
        {
            "question": "what is the brand of this camera?",
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602,
            "answers": ["dakota"] * 4 + ["nous les gosses"] * 6,
            "set_name": "val",
        },
        {"question": "Whose?", "image_id": "b9dc", "question_id": 34603, "answers": ["anna's"] * 10, "set_name": "val"},
    ]
    return write("TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": records})


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


def scienceqa_files(write: Write) -> tuple[Path, Path]:
    def problem(question: str, choices: list[str], answer: int, image: str | None, hint: str = "") -> dict[str, Any]:
        subject = {"subject": "natural science", "grade": "grade2"}
        return {"question": question, "choices": choices, "answer": answer, "image": image, "hint": hint, **subject}

    problems = {
        "1": problem("In training?", ["no", "yes"], 0, "image.png"),
        "4": problem("Without a picture?", ["no", "yes"], 0, None),
        "11": problem("What is the name of the colony shown?", ["Maryland", "Vermont"], 1, "image.png"),
        "46": problem("Which property?", ["shiny", "slippery", "opaque"], 2, "image.png", "Select the  best answer."),
    }
    splits = {"train": ["1"], "val": [], "test": ["4", "11", "46"], "minival": []}
    return write("problems.json", problems), write("pid_splits.json", splits)


def test_scienceqa(write: Write) -> None:
    problems, splits = scienceqa_files(write)
    questions = read("scienceqa", problems, splits)
    assert [question.id for question in questions] == ["11", "46"]
    assert questions[0].prompt == f"What is the name of the colony shown?\nA. Maryland\nB. Vermont\n{LETTER}"
    assert questions[1].prompt.startswith("Context: Select the best answer.\nWhich property?\nA. shiny\n")
    assert questions[1].images == (str(problems.parent / "46/image.png"),)
    assert score("scienceqa", questions, "B", "B. because").figures == {"accuracy": 50.0}
    assert score("scienceqa", questions, "C", "The answer is C.").per_sample == {"11": 0.0, "46": 1.0}
    with pytest.raises(LlavaError, match=r"pid_splits\.json is missing"):
        read("scienceqa", problems)


def pope_file(write: Write, split: str = "random") -> Path:
    labels = ["yes", "yes", "no", "no"]
    records = [
        {
            "question_id": number,
            "image": "COCO_val2014_000000310196.jpg",
            "text": f"Is there a {number}?",
            "label": label,
        }
        for number, label in enumerate(labels, 1)
    ]
    return write(f"coco_pope_{split}.json", records)


def test_pope(write: Write) -> None:
    files = [pope_file(write, split) for split in ("random", "popular", "adversarial")]
    questions = read("pope", *files)
    assert [question.id for question in questions[3:6]] == ["random/4", "popular/1", "popular/2"]
    assert questions[0].prompt == f"Is there a 1?\n{WORD}"
    # random: one hit, one miss, one false alarm, one right no; popular: all right; adversarial: always yes.
    scores = score("pope", questions, "Yes", "No", "Yes", "No", "Yes", "Yes", "No", "There is not", *["Yes"] * 4)
    assert scores.groups["random"] == pytest.approx(
        dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_share"), 50.0)
    )
    assert scores.groups["popular"] == pytest.approx(
        {"accuracy": 100.0, "precision": 100.0, "recall": 100.0, "f1": 100.0, "yes_share": 50.0}
    )
    assert scores.groups["adversarial"] == pytest.approx(
        {"accuracy": 50.0, "precision": 50.0, "recall": 100.0, "f1": 200 / 3, "yes_share": 100.0}
    )
    assert scores.figures["f1"] == pytest.approx((50 + 100 + 200 / 3) / 3)
    assert sum(scores.per_sample.values()) == 8


def test_pope_counts_a_failed_question_as_wrong_both_ways(write: Write) -> None:
    scores = score("pope", read("pope", pope_file(write)), None, "Yes", "No", None)
    assert scores.figures["accuracy"] == 50.0
    assert list(scores.per_sample.values()) == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("apart", [False, True])
def test_mme(tmp_path: Path, apart: bool) -> None:
    folder = tmp_path / "MME_Benchmark_release_version"
    for subtask, name in (("existence", "000000006040"), ("existence", "000000006041"), ("code_reasoning", "0020")):
        texts = folder / subtask / ("questions_answers_YN" if apart else "")
        pictures = folder / subtask / ("images" if apart else "")
        for place in (texts, pictures):
            place.mkdir(parents=True, exist_ok=True)
        (pictures / f"{name}.png").touch()
        lines = [
            "Is there a dog in this image?  Please answer yes or no.\tYes",
            "Is it a cat? Please answer yes or no.\tNo",
        ]
        (texts / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "eval_tool").mkdir()
    questions = read("mme", folder)
    assert questions[0].prompt == f"Is it raining?\n{WORD}".replace("Is it raining?", "Is there a dog in this image?")
    assert [question.id for question in questions[:2]] == ["code_reasoning/0020/1", "code_reasoning/0020/2"]
    assert questions[2].images[0].endswith("000000006040.png")
    # code_reasoning: one of two right (50 + 0); existence: three of four right, one picture of two wholly (75 + 50).
    scores = score("mme", questions, "Yes", "Yes", "Yes", "No", "Church", "no")
    assert scores.figures == {"perception": 125.0, "cognition": 50.0}
    assert scores.groups["acc"] == {"code_reasoning": 50.0, "existence": 75.0}
    assert scores.groups["acc+"] == {"code_reasoning": 0.0, "existence": 50.0}
    cut = score("mme", questions[:3], "Yes", "No", "Yes")
    assert (cut.figures["cognition"], cut.figures["perception"]) == (200.0, 0.0)
    assert cut.notes == ("1 questions without the other about their picture are not counted",)


def picture_in_base64(colour: str) -> str:
    file = BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]


def mmbench_row(index: int, options: list[str], answer: str, image: str, hint: str = "") -> str:
    cells = [*options, *[""] * (4 - len(options))]
    return "\t".join([str(index), "Which one?", hint, *cells, answer, "ocr", image, "x", "finegrained"])


def mmbench_file(write: Write, *rows: str) -> Path:
    return write("mmbench_dev_20230712.tsv", "\n".join(["\t".join(COLUMNS), *rows]) + "\n")


def test_mmbench_makes_the_rounds(write: Write) -> None:
    path = mmbench_file(
        write,
        mmbench_row(241, ["red", "blue", "green"], "B", picture_in_base64("red"), "Look."),
        mmbench_row(252, ["cat", "dog"], "A", picture_in_base64("blue")),
    )
    questions = read("mmbench", path)
    assert [question.id for question in questions] == ["241/0", "241/1", "241/2", "252/0", "252/1"]
    assert questions[0].prompt == f"Look.\nWhich one?\nA. red\nB. blue\nC. green\n{LETTER}"
    assert questions[1].prompt == f"Look.\nWhich one?\nA. blue\nB. green\nC. red\n{LETTER}"
    assert [question.references for question in questions] == [("B",), ("A",), ("C",), ("A",), ("B",)]
    assert len({question.images for question in questions}) == 2
    assert Image.open(questions[3].images[0]).getpixel((0, 0)) == (0, 0, 255)
    # The first question is right in every round, the second in its first alone.
    scores = score("mmbench", questions, "B", "A.", "C", "cat", "A")
    assert scores.figures == {"circular": 50.0, "vanilla": 100.0, "rounds": pytest.approx(75.0)}
    assert scores.per_sample == {"241/0": 1.0, "252/0": 0.0}
    assert score("mmbench", questions, "B", None, "C", "A", "B").figures["circular"] == 50.0
    cut = score("mmbench", questions[:4], "B", "A", "C", "A")
    assert cut.figures["circular"] == 100.0
    assert cut.notes == ("1 questions were not asked in all their rounds and are not counted",)


def test_mmbench_takes_the_rounds_of_the_file(write: Write) -> None:
    image = picture_in_base64("red")
    rows = [
        mmbench_row(241, ["red", "blue"], "B", image),
        mmbench_row(252, ["yes", "no"], "A", image),
        mmbench_row(1000241, ["blue", "red"], "A", "241"),
        mmbench_row(1000252, ["no", "yes"], "B", image),
    ]
    questions = read("mmbench", mmbench_file(write, *rows))
    assert [question.id for question in questions] == ["241/0", "241/1", "252/0", "252/1"]
    assert len({question.images for question in questions}) == 1
    assert score("mmbench", questions, "B", "A", "A", "A").figures["circular"] == 50.0


def test_mmbench_in_chinese_is_asked_in_chinese(write: Write) -> None:
    path = mmbench_file(write, mmbench_row(1, ["红", "蓝"], "B", picture_in_base64("red")))
    chinese = path.rename(path.with_name("mmbench_dev_cn_20231003.tsv"))
    assert read("mmbench", chinese)[0].prompt.endswith("B. 蓝\n请直接回答选项字母。")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            mmbench_row(1, ["a", "b"], "C", picture_in_base64("red")),
            r"record 1 \(line 2\): the answer must be the letter",
        ),
        (mmbench_row(1, ["a", "b"], "A", "no base64!"), r"record 1 \(line 2\): image is neither"),
        ("1\tWhich one?", r"record 1 \(line 2\): it has not as many cells"),
        (mmbench_row(1, ["a", "b"], "A", "").replace("1", "one", 1), "index must be a whole number"),
    ],
)
def test_mmbench_names_a_bad_record(write: Write, row: str, message: str) -> None:
    with pytest.raises(LlavaError, match=message):
        read("mmbench", mmbench_file(write, row))


def test_seed(write: Write) -> None:
    def record(number: str, kind: str, type_id: int, answer: str) -> dict[str, Any]:
        choices = {
            f"choice_{letter}": word for letter, word in zip("abcd", ("One", "Two", "Three", "Four"), strict=True)
        }
        own = {"question_id": number, "data_id": f"{number}_1", "data_type": kind, "question_type_id": type_id}
        return {"question": "How many towels are in the image?", "answer": answer, **own, **choices}

    questions = [record("101669", "image", 1, "A"), record("2", "video", 10, "B"), record("3", "image", 2, "D")]
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    path = write("SEED-Bench.json", {"questions": questions, "question_type": types})
    asked = read("seed", path)
    assert [question.id for question in asked] == ["101669", "3"]
    assert asked[0].prompt == f"How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER}"
    scores = score("seed", asked, "A", "Four")
    assert scores.figures == {"accuracy": 50.0}
    assert scores.groups["Type"] == {"Instance Identity": 0.0, "Scene Understanding": 100.0}


def test_coco_caption(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_metric, "java_tokenizer", lambda: None)
    captions = {391895: ["A man rides a motorbike.", "A motorbike on a dirt road."], 522418: ["A woman cuts a cake."]}
    images = [{"id": 1, "file_name": "nothing.jpg"}] + [
        {"id": number, "file_name": f"COCO_val2014_{number:012}.jpg", "height": 360, "width": 640}
        for number in captions
    ]
    annotations = [
        {"image_id": number, "id": 10 * number + place, "caption": caption}
        for number, several in captions.items()
        for place, caption in enumerate(several)
    ]
    questions = read("coco-caption", write("captions_val2014.json", {"images": images, "annotations": annotations}))
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


def refer_files(write: Write, tmp_path: Path, refs: Any = None) -> tuple[Path, Path]:
    def ref(number: int, split: str, *sentences: str) -> dict[str, Any]:
        said = [
            {"sent_id": 10 * number + i, "sent": sent, "raw": sent, "tokens": sent.split()}
            for i, sent in enumerate(sentences)
        ]
        own = {"ref_id": number, "ann_id": 100 + number, "image_id": 7, "category_id": 1, "split": split}
        return {
            **own,
            "sentences": said,
            "sent_ids": [it["sent_id"] for it in said],
            "file_name": "COCO_train2014_x_1.jpg",
        }

    refs = refs or [ref(0, "train", "no"), ref(1, "val", "left man", "man on left"), ref(2, "testB", "cup")]
    instances = {
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 100, "height": 200}],
        "annotations": [{"id": 100 + number, "image_id": 7, "bbox": [10 * number, 20, 50, 100]} for number in range(3)],
        "categories": [],
    }
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(refs, protocol=0))
    return path, write("instances.json", instances)


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
    turns = [["<image>\nWhat colour is the bus?", "Red."], ["Where is it?", "0.10, 0.10, 0.50, 0.50"]]
    path = write(
        "mine.jsonl", [{"image": "bus.jpg", "conversations": turns}, {"conversations": [["Hello", "Good day"]]}]
    )
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


def test_custom_refuses_pictures_amid_the_text(write: Write) -> None:
    record = {"images": ["a.jpg", "b.jpg"], "conversations": [["left: <image> right: <image>", "Both."]]}
    with pytest.raises(LlavaError, match=r"record 1 .*pictures must come before the first question"):
        read("custom", write("mine.jsonl", [record]))


# --- what is wrong with files -----------------------------------------------------------------------


def good_files(task: str, write: Write, tmp_path: Path) -> list[Path]:
    """Files of a task that are read."""
    match task:
        case "vqav2":
            return list(vqa_files(write))
        case "gqa":
            record = {"question": "Is it?", "imageId": "n1", "answer": "no"}
            return [write("testdev_balanced_questions.json", {"1": record})]
        case "textvqa":
            return [textvqa_file(write)]
        case "scienceqa":
            return list(scienceqa_files(write))
        case "pope":
            return [pope_file(write)]
        case "mmbench":
            return [mmbench_file(write, mmbench_row(1, ["a", "b"], "A", picture_in_base64("red")))]
        case "coco-caption":
            images = [{"id": 1, "file_name": "1.jpg"}]
            return [write("captions.json", {"images": images, "annotations": [{"image_id": 1, "caption": "A."}]})]
        case "refcoco":
            return list(refer_files(write, tmp_path))
        case "custom":
            return [write("mine.jsonl", [{"conversations": [["Hello", "Good day"]]}])]
    choices = {f"choice_{letter}": "x" for letter in "abcd"}
    record = {
        "question": "Q",
        "question_id": "1",
        "data_id": "1",
        "data_type": "image",
        "question_type_id": 1,
        **choices,
    }
    return [write("SEED-Bench.json", {"questions": [{**record, "answer": "A"}], "question_type": {"x": 1}})]


FILE_TASKS = ["vqav2", "gqa", "textvqa", "scienceqa", "pope", "mmbench", "seed", "coco-caption", "refcoco", "custom"]


@pytest.mark.parametrize("task", FILE_TASKS)
@pytest.mark.parametrize("damage", ["nothing there", "empty", "cut", "not text", "a list of numbers", "other keys"])
def test_a_bad_file_is_one_line_that_names_it(task: str, damage: str, write: Write, tmp_path: Path) -> None:
    for path in good_files(task, write, tmp_path):
        paths = good_files(task, write, tmp_path)
        content = path.read_bytes()
        match damage:
            case "nothing there":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case "cut":
                path.write_bytes(content[: len(content) * 9 // 20])
            case "not text":
                path.write_bytes(b"\xff\xfe\x00\x80" * 9)
            case "a list of numbers":
                path.write_bytes(b"[1, 2, 3]")
            case "other keys":
                path.write_bytes(b'{"a": {"b": 1}}')
        with pytest.raises(LlavaError) as raised:
            read(task, *paths)
        assert "\n" not in str(raised.value)
        assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"street"}))
def test_a_folder_without_the_files_is_named(task: str, tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match=str(tmp_path)):
        read(task, tmp_path)


def test_ids_that_come_twice_are_named(write: Write) -> None:
    asked, answered = vqa_files(write)
    content = json.loads(asked.read_text())
    content["questions"][2]["question_id"] = 42000
    asked.write_text(json.dumps(content))
    with pytest.raises(LlavaError, match=r"questions, item 3: the id '42000' is that of .*questions, item 1 already"):
        read("vqav2", asked, answered)
    records = [json.loads(line) for line in pope_file(write).read_text().splitlines()]
    records[1]["question_id"] = 1
    with pytest.raises(LlavaError, match=r"record 2 \(line 2\): the id 'random/1' is that of .*record 1 \(line 1\)"):
        read("pope", write("coco_pope_random.json", records))


@pytest.mark.parametrize(
    ("key", "value"), [("label", "maybe"), ("label", None), ("image", 3), ("text", None), ("question_id", [])]
)
def test_a_bad_value_is_named_with_its_record(write: Write, key: str, value: Any) -> None:
    records = [json.loads(line) for line in pope_file(write).read_text().splitlines()]
    records[2][key] = value
    with pytest.raises(LlavaError, match=rf"record 3 \(line 3\): {key} must be"):
        read("pope", write("coco_pope_random.json", records))


def test_pictures_are_found_where_the_benchmark_puts_them(write: Write, tmp_path: Path) -> None:
    path = pope_file(write)
    name = "COCO_val2014_000000310196.jpg"
    assert read("pope", path)[0].images == (str(tmp_path / name),)  # where it would be
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / name).touch()
    assert read("pope", path)[0].images == (str(tmp_path / "val2014" / name),)
    other = tmp_path / "elsewhere"
    assert read("pope", path, image_folder=other)[0].images == (str(other / name),)
