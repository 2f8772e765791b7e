"""What is wrong with a benchmark's files is one line that names file and record."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import Write, good_files, pope_file, read, vqa_files

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.tasks import TASKS

FILE_TASKS = sorted(set(TASKS) - {"mme", "street"})


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


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"mme", "street", "custom"}))  # these number their questions
def test_no_record_twice(task: str, write: Write, tmp_path: Path) -> None:
    """A record that is doubled in any of a task's files is told, and never takes the place of another."""
    for path in good_files(task, write, tmp_path):
        paths = good_files(task, write, tmp_path)
        match path.suffix:
            case ".tsv" | ".json" if task in ("mmbench", "pope"):  # a record a line
                path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
            case ".json":
                content = json.loads(path.read_text())
                lists = [value for value in content.values() if isinstance(value, list) and value]
                for value in lists:
                    value.append(value[-1])
                text = json.dumps(content)
                path.write_text(text if lists else f"{text[:-1]}, {text[1:]}")
            case ".p":
                path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) * 2))  # noqa: S301
        with pytest.raises(LlavaError, match=r"already|twice"):
            read(task, *paths)


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
