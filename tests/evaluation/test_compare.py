"""Two runs beside each other, and how sure a difference is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.compare import compare, run_compare
from paddle_llava.evaluation.predictions import Run, write_predictions
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.evaluation.significance import bootstrap_interval, fraction_interval, mcnemar, paired_bootstrap


def results(path: Path, scores: dict[str, float], *, task: str = "vqav2", model: str = "m") -> Path:
    path.write_text(json.dumps({"task": task, "model": model, "per_sample": scores}))
    return path


def test_a_comparison_counts_what_changed(tmp_path: Path) -> None:
    before = {str(number): float(number < 50) for number in range(100)}
    after = {str(number): float(number < 45 or number >= 80) for number in range(1, 101)}
    it = compare(results(tmp_path / "a.json", before, model="base"), results(tmp_path / "b.json", after))
    assert (it.questions, it.worse, it.better) == (99, 5, 20)
    assert (it.only_a, it.only_b) == (1, 1)
    assert it.mean_a == pytest.approx(49 / 99)
    assert it.difference.mean == pytest.approx(it.mean_b - it.mean_a) == pytest.approx(15 / 99)
    assert (it.test, it.model_a) == ("McNemar", "base")
    assert it.p == pytest.approx(mcnemar(5, 20))
    assert it.is_significant
    assert it.difference.low > 0
    assert [change.id for change in it.changes[:5]] == ["45", "46", "47", "48", "49"]


def test_scores_between_are_compared_by_the_bootstrap(tmp_path: Path) -> None:
    before = {str(number): (number % 10) / 10 for number in range(300)}
    after = {id: min(1.0, score + 0.3 * (int(id) % 2)) for id, score in before.items()}
    it = compare(results(tmp_path / "a.json", before), results(tmp_path / "b.json", after))
    assert it.test == "paired bootstrap"
    assert it.p == it.difference.p < 0.01
    same = compare(tmp_path / "a.json", tmp_path / "a.json")
    assert (same.better, same.worse, same.difference.mean, same.p) == (0, 0, 0.0, 1.0)
    assert not same.is_significant


def run_of(folder: Path, model: str, answers: dict[str, str]) -> Path:
    """A POPE run whose labels are all yes."""
    predictions = [
        Prediction(Question(id, f"Is there a {id}?", references=("yes",), meta={"split": "random"}), answer)
        for id, answer in answers.items()
    ]
    folder.mkdir()
    write_predictions(folder / "predictions.jsonl", Run("pope", model, len(answers)), predictions)
    return folder / "predictions.jsonl"


def test_predictions_are_scored_and_their_answers_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_of(tmp_path / "a", "base", {"cat": "yes", "dog": "no", "bus": "Yes", "cow": "yes"})
    b = run_of(tmp_path / "b", "tuned", {"cat": "yes", "dog": "yes", "bus": "yes", "cow": "no, \x1b[2J"})
    assert run_compare(a, b) == 0
    text = capsys.readouterr().out
    assert "pope, 4 questions" in text
    assert "better on 1, worse on 1; 1 more are worded otherwise" in text
    assert "dog: 0.00 -> 1.00  Is there a dog? | no -> yes" in text
    assert "\x1b" not in text
    assert "no difference that could not be chance" in text
    assert run_compare(a, b, as_json=True) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["better"], value["reworded"], value["significant"]) == (1, 1, False)
    assert value["changes"][0] == {
        "id": "cow",
        "score_a": 1.0,
        "score_b": 0.0,
        "prompt": "Is there a cow?",
        "answer_a": "yes",
        "answer_b": "no, \x1b[2J",
    }


def test_answers_beside_results_are_found_in_their_folders(tmp_path: Path) -> None:
    for name, answer, score in (("a", "no", 0.0), ("b", "yes", 1.0)):
        folder = run_of(tmp_path / name, name, {"cat": answer}).parent
        results(folder / "results.json", {"cat": score}, task="pope")
    (change,) = compare(tmp_path / "a", tmp_path / "b").changes
    assert (change.answer_a, change.answer_b) == ("no", "yes")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = results(tmp_path / "a.json", {"1": 1.0})
    with pytest.raises(LlavaError, match="of the task vqav2 and"):
        compare(a, results(tmp_path / "b.json", {"1": 1.0}, task="gqa"))
    with pytest.raises(LlavaError, match="no question in common"):
        compare(a, results(tmp_path / "b.json", {"2": 1.0}))
    with pytest.raises(LlavaError, match=r"nowhere\.json: cannot be read"):
        compare(a, tmp_path / "nowhere.json")
    (tmp_path / "b.json").write_text('{"task": "vqav2", "model": "m"}')
    with pytest.raises(LlavaError, match="per_sample is missing"):
        compare(a, tmp_path / "b.json")
    for wrong in ('"x"', "NaN", "null", "true"):
        (tmp_path / "b.json").write_text(
            '{"task": "vqav2", "model": "m", "per_sample": {"1": WRONG}}'.replace("WRONG", wrong)
        )
        with pytest.raises(LlavaError, match="question 1: a number"):
            compare(a, tmp_path / "b.json")
    one, other = run_of(tmp_path / "one", "m", {"cat": "yes"}), run_of(tmp_path / "other", "m", {"cat": "yes"})
    other.write_text(other.read_text().replace("Is there", "Do you see"))
    with pytest.raises(LlavaError, match="question cat is another one"):
        compare(one, other)


# --- significance ---------------------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """Figures of scipy's `binomtest(k, n).pvalue`."""
    assert mcnemar(121, 59) == pytest.approx(4.4344492637551645e-06, rel=1e-9)
    assert mcnemar(5, 20) == pytest.approx(0.004077315330505371, rel=1e-9)
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(7, 7) == mcnemar(0, 0) == mcnemar(1, 0) == 1.0
    assert 0 <= mcnemar(40_000, 60_000) < 1e-100


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_sum_of_all_as_unlikely(a: int, b: int) -> None:
    count = a + b
    ways = [math.comb(count, k) for k in range(count + 1)]
    expected = sum(way for way in ways if way <= ways[a]) / 2**count
    assert mcnemar(a, b) == pytest.approx(expected) == pytest.approx(mcnemar(b, a))


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    generator = np.random.default_rng(3)
    held = 0
    for trial in range(200):
        values = (generator.random(150) < 0.7).astype(float)
        low, high = bootstrap_interval(values.tolist(), seed=trial)
        held += low <= 0.7 <= high
    assert 180 <= held <= 199


def test_an_interval_is_the_same_each_time_and_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400).tolist()
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.08)
    assert bootstrap_interval([0.5] * 9) == (0.5, 0.5)
    assert all(map(math.isnan, bootstrap_interval([])))


def test_an_interval_of_fractions_is_as_wide_as_theory_says() -> None:
    """A precision of 300/400 has a standard error of sqrt(0.75 * 0.25 / 400), whatever else was asked."""
    asked = [(100.0, 1.0)] * 300 + [(0.0, 1.0)] * 100 + [(0.0, 0.0)] * 600
    low, high = fraction_interval([asked])
    assert (low + high) / 2 == pytest.approx(75, abs=0.3)
    assert high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.75 * 0.25 / 400), rel=0.08)
    # Two alike and apart from each other: their sum's error is theirs times the root of two.
    both = fraction_interval([asked, asked])
    assert both[1] - both[0] == pytest.approx(math.sqrt(2) * (high - low), rel=0.08)
    assert fraction_interval([[(1.0, 2.0)], []]) == (0.5, 0.5)
    assert all(map(math.isnan, fraction_interval([])))


def test_pairs_tell_a_difference_that_the_spread_would_hide() -> None:
    generator = np.random.default_rng(1)
    a = generator.random(200)
    it = paired_bootstrap(a.tolist(), (a + 0.02 + 0.02 * generator.standard_normal(200)).tolist())
    assert it.low < 0.02 < it.high
    assert it.low > 0
    assert it.p < 0.01
    none = paired_bootstrap(a.tolist(), (a + 0.02 * generator.standard_normal(200)).tolist())
    assert none.p > 0.05
    assert math.isnan(paired_bootstrap([], []).p)
