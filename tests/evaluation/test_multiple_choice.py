"""ScienceQA, MMBench and SEED: each from a small file in its published form to a score computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_files import (
    LETTER,
    Write,
    good_files,
    mmbench_file,
    mmbench_row,
    picture_in_base64,
    read,
    scienceqa_files,
    score,
    seed_file,
)
from PIL import Image

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.published import published_score
from paddle_llava.evaluation.significance import figure_intervals


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


def test_mmbench_makes_the_rounds(write: Write, tmp_path: Path) -> None:
    (path,) = good_files("mmbench", write, tmp_path)
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
    questions = read("mmbench", chinese)
    assert questions[0].prompt.endswith("B. 蓝\n请直接回答选项字母。")
    scores = score("mmbench", questions, "B", "A")
    assert scores.published_as is not None
    assert published_score(scores.published_as, "llava-hf/llava-1.5-7b-hf") == ("llava-1.5-7b", 58.3)


def test_a_part_of_mmbench_without_a_whole_question_has_no_intervals(write: Write) -> None:
    path = mmbench_file(write, mmbench_row(1, ["red", "blue"], "B", picture_in_base64("red")))
    scores = score("mmbench", read("mmbench", path)[:1], "B")
    assert scores.published_as is None
    assert figure_intervals(scores) == {}


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
    asked = read("seed", seed_file(write))
    assert [question.id for question in asked] == ["101669", "3"]
    assert asked[0].prompt == f"How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER}"
    scores = score("seed", asked, "A", "Four")
    assert scores.figures == {"accuracy": 50.0}
    assert scores.groups["Type"] == {"Instance Identity": 0.0, "Scene Understanding": 100.0}
