"""Caption scores against pycocoevalcap's: its answers are in fixtures/captions.json (see make_captions.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics import captions, ptb
from paddle_llava.evaluation.metrics.captions import caption_scores
from paddle_llava.evaluation.metrics.meteor import meteor, meteor_jar
from paddle_llava.evaluation.metrics.ptb import java_tokenizer, java_words, words


@pytest.fixture(scope="module")
def coco() -> dict[str, Any]:
    return json.loads((Path(__file__).with_name("fixtures") / "captions.json").read_text(encoding="utf-8"))


def test_words_equal_those_of_stanford(coco: dict[str, Any]) -> None:
    captions = {id: [text, *coco["references"][id]] for id, text in coco["predictions"].items()}
    assert {id: [" ".join(words(text)) for text in texts] for id, texts in captions.items()} == coco["words"]
    assert sum(map(len, captions.values())) > 800


def test_scores_equal_pycocoevalcap(coco: dict[str, Any]) -> None:
    scores = caption_scores(coco["predictions"], coco["references"], java=False)
    assert len(scores.per_image) >= 200
    assert scores.corpus == pytest.approx(coco["corpus"], abs=1e-9)
    assert 0.2 < scores.corpus["BLEU-4"] < 0.9
    assert scores.corpus["CIDEr"] > 0.5
    for id, figures in coco["per_image"].items():
        assert [scores.per_image[id][name] for name in coco["names"]] == pytest.approx(figures, abs=1e-8), id
    assert scores.tokenizer == "own"
    assert "METEOR" not in scores.corpus


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("It's the dogs' bone, isn't it?", "it 's the dogs bone is n't it"),
        ("(left) [right] {x}", "-lrb- left -rrb- -lsb- right -rsb- -lcb- x -rcb-"),
        ("$5.00 and 50% off at 3:30pm", "$ 5.00 and 50 % off at 3:30 pm"),
        ("I cannot, gonna", "i can not gon na"),
        ("Mr. Smith vs. St. James etc.", "mr. smith vs. st. james etc."),
        ("wait... what -- ok — hm", "wait what ok hm"),
        ("on 22 3/4 street", "on 22\xa03/4 street"),
        ("they'd've couldn't've", "they 'd 've could n't 've"),
        ("a w/ and/or b/c e-mail foo@bar.com", "a w / and/or b/c e-mail foo@bar.com"),
        ("😀 happy 公交车", "happy 公交车"),
        ("!!", "!!"),
        ("", ""),
    ],
)
def test_words_by_the_treebanks_rules(caption: str, expected: str) -> None:
    """Each as PTBTokenizer 3.4.1 says it."""
    assert " ".join(words(caption)) == expected


@given(st.text(max_size=60))
def test_any_caption_has_words(text: str) -> None:
    assert not {" ", "\n", ""} & set("".join(words(text)).split("\xa0")) - {""}
    assert all(word and word not in ptb.PUNCTUATION for word in words(text))


def test_a_long_caption_is_split_quickly() -> None:
    assert len(words("a'" * 50_000 + "." * 50_000 + "-a" * 50_000)) > 0


def test_a_perfect_caption_and_an_empty_one() -> None:
    scores = caption_scores(
        {"1": "A red bus on the street.", "2": ""},
        {"1": ["a red bus on the street"], "2": ["two dogs sleep on a bed"]},
        java=False,
    )
    assert [scores.per_image["1"][name] for name in ("BLEU-4", "ROUGE-L", "CIDEr")] == pytest.approx([1, 1, 10])
    assert [scores.per_image["2"][name] for name in ("BLEU-4", "ROUGE-L", "CIDEr")] == pytest.approx([0, 0, 0])


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(LlavaError, match="no captions"):
        caption_scores({}, {})
    with pytest.raises(LlavaError, match="image 2 has no reference"):
        caption_scores({"1": "x", "2": "y"}, {"1": ["x"]})
    with pytest.raises(LlavaError, match="image 1 has no caption"):
        caption_scores({"2": "y"}, {"1": ["x"], "2": ["y"]})
    with pytest.raises(LlavaError, match="image 1 has an empty list"):
        caption_scores({"1": "x"}, {"1": []})


def test_without_java_it_is_our_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb.shutil, "which", lambda name: None)
    scores = caption_scores({"1": "a bus"}, {"1": ["a bus"]})
    assert scores.tokenizer == "own"
    with pytest.raises(LlavaError, match="needs java"):
        java_words(["a"])
    with pytest.raises(LlavaError, match="needs java"):
        meteor(["a"], [["a"]])


def test_a_java_that_fails_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ptb, "java_tokenizer", lambda: ("/bin/false", tmp_path / "no.jar"))
    with pytest.raises(LlavaError, match="0 lines for 2 captions"):
        java_words(["a", "b"])


@pytest.mark.parity
@pytest.mark.skipif(java_tokenizer() is None or meteor_jar() is None, reason="needs java and pycocoevalcap")
def test_live_against_pycocoevalcap_with_meteor() -> None:
    from make_captions import invented, official

    predictions, references = invented(60, seed=11)
    expected = official(predictions, references, with_meteor=True)
    scores = captions.caption_scores(predictions, references)
    assert scores.tokenizer == "java"
    assert scores.corpus == pytest.approx(expected["corpus"], abs=1e-9)
    assert scores.per_image == {id: pytest.approx(row, abs=1e-9) for id, row in expected["per_image"].items()}
