"""Small files of each benchmark in its published form, and what a test does with them."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks import load_task
from paddle_llava.evaluation.tasks.files import Data

Write = Callable[[str, Any], Path]

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


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


def gqa_file(write: Write) -> Path:
    def record(question: str, answer: str, structural: str) -> dict[str, Any]:
        types = {"structural": structural, "semantic": "attr", "detailed": "x"}
        return {"question": question, "imageId": "n161313", "answer": answer, "isBalanced": True, "types": types}

    return write(
        "testdev_balanced_questions.json",
        {
            "201307251": record("Is it overcast?", "no", "verify"),
            "201640614": record("Who is wearing the dress?", "woman", "query"),
            "202225914": record("Is it clean or dirty?", "clean", "choose"),
        },
    )


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


def mme_folder(tmp_path: Path, *, apart: bool = False) -> Path:
    """Three pictures in two subtasks, with the texts beside them or `apart`."""
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
    return folder


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


def seed_file(write: Write) -> Path:
    def record(number: str, kind: str, type_id: int, answer: str) -> dict[str, Any]:
        choices = {
            f"choice_{letter}": word for letter, word in zip("abcd", ("One", "Two", "Three", "Four"), strict=True)
        }
        own = {"question_id": number, "data_id": f"{number}_1", "data_type": kind, "question_type_id": type_id}
        return {"question": "How many towels are in the image?", "answer": answer, **own, **choices}

    questions = [record("101669", "image", 1, "A"), record("2", "video", 10, "B"), record("3", "image", 2, "D")]
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    return write("SEED-Bench.json", {"questions": questions, "question_type": types})


def captions_file(write: Write) -> Path:
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
    return write("captions_val2014.json", {"images": images, "annotations": annotations})


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


def custom_file(write: Write) -> Path:
    turns = [["<image>\nWhat colour is the bus?", "Red."], ["Where is it?", "0.10, 0.10, 0.50, 0.50"]]
    return write(
        "mine.jsonl", [{"image": "bus.jpg", "conversations": turns}, {"conversations": [["Hello", "Good day"]]}]
    )


def good_files(task: str, write: Write, tmp_path: Path) -> list[Path]:
    """What `--data` may name for a task: files that are read, written to `tmp_path`."""
    match task:
        case "vqav2":
            return list(vqa_files(write))
        case "gqa":
            return [gqa_file(write)]
        case "textvqa":
            return [textvqa_file(write)]
        case "scienceqa":
            return list(scienceqa_files(write))
        case "pope":
            return [pope_file(write)]
        case "mme":
            return [mme_folder(tmp_path)]
        case "mmbench":
            rows = [
                mmbench_row(241, ["red", "blue", "green"], "B", picture_in_base64("red"), "Look."),
                mmbench_row(252, ["cat", "dog"], "A", picture_in_base64("blue")),
            ]
            return [mmbench_file(write, *rows)]
        case "seed":
            return [seed_file(write)]
        case "coco-caption":
            return [captions_file(write)]
        case "custom":
            return [custom_file(write)]
        case "street":
            return [Path("1")]
    return list(refer_files(write, tmp_path))
