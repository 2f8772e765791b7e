"""POPE and MME: each from a small file in its published form to a score computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_files import WORD, Write, mme_folder, pope_file, read, score


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
    questions = read("mme", mme_folder(tmp_path, apart=apart))
    assert questions[0].prompt == f"Is there a dog in this image?\n{WORD}"
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
