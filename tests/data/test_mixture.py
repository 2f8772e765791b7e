from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llava.data.mixture import Mixture, Part
from paddle_llava.data.records import RecordFile
from paddle_llava.errors import LlavaError
from paddle_llava.processing.templates import TEMPLATES

VICUNA, PLAIN = TEMPLATES["vicuna_v1"], TEMPLATES["plain"]


@pytest.fixture
def make(write: Callable[..., Path]) -> Callable[..., RecordFile]:
    def make(name: str, size: int) -> RecordFile:
        return RecordFile(write([{"conversations": [["Q", f"{name} {n}"]]} for n in range(size)], name))

    return make


def test_is_all_samples_each_with_its_template(make: Callable[..., RecordFile]) -> None:
    first = Part((make("a.json", 3), make("b.jsonl", 2)), VICUNA)
    mixture = Mixture([first, Part((make("c.json", 4),), PLAIN)])
    assert len(mixture) == mixture.epoch_samples == 9
    answers = [str(mixture[n][0].messages[1].text) for n in range(9)]
    assert answers == [
        f"{name} {n}" for name, size in (("a.json", 3), ("b.jsonl", 2), ("c.json", 4)) for n in range(size)
    ]
    assert [mixture[n][1] for n in range(9)] == [VICUNA] * 5 + [PLAIN] * 4
    for index in (-1, 9):
        with pytest.raises(IndexError):
            mixture[index]


def test_an_epoch_takes_each_sample_as_often_as_its_weight_says(make: Callable[..., RecordFile]) -> None:
    parts = [Part((make("a.json", 10),), VICUNA, 2.5), Part((make("b.json", 8),), VICUNA, 0.25)]
    mixture = Mixture([*parts, Part((make("c.json", 6),), VICUNA)])
    assert mixture.epoch_samples == 25 + 2 + 6
    orders = [mixture.epoch_order(7, epoch) for epoch in range(20)]
    for order in orders:
        times = Counter(order.tolist())
        assert sorted(times[n] for n in range(10)) == [2] * 5 + [3] * 5
        assert sum(times[n] for n in range(10, 18)) == max(times[n] for n in range(10, 18)) * 2 == 2
        assert [times[n] for n in range(18, 24)] == [1] * 6
    rare = set(np.concatenate(orders).tolist()) & set(range(10, 18))
    assert rare == set(range(10, 18))  # other ones at other epochs


def test_the_template_of_most_samples(make: Callable[..., RecordFile]) -> None:
    few, more, many = (Part((make(f"{n}.json", n),), told_in) for n, told_in in ((2, VICUNA), (3, VICUNA), (4, PLAIN)))
    assert Mixture([many]).template == PLAIN
    assert Mixture([few, many]).template == PLAIN
    assert Mixture([few, many, more]).template == VICUNA
    assert Mixture([Part(few.files, VICUNA, 3), many]).template == VICUNA


def test_order_follows_from_seed_and_epoch(make: Callable[..., RecordFile]) -> None:
    mixture = Mixture([Part((make("a.json", 100),), VICUNA)])
    order = mixture.epoch_order(1, 2)
    np.testing.assert_array_equal(order, mixture.epoch_order(1, 2))
    for other in (mixture.epoch_order(1, 3), mixture.epoch_order(2, 2), mixture.epoch_order(1, 2, shuffle=False)):
        assert (order != other).any()
        assert sorted(other) == sorted(order) == list(range(100))
    assert mixture.epoch_order(1, 2, shuffle=False).tolist() == list(range(100))


def test_reads_the_configuration(make: Callable[..., RecordFile], tmp_path: Path) -> None:
    for name, size in (("x1.json", 2), ("x2.json", 3), ("y.jsonl", 4)):
        make(name, size)
    template = tmp_path / "mine.json"
    template.write_text('{"user_prefix": "Q: ", "assistant_prefix": "A:", "answer_suffix": "</s>"}')
    mixture = Mixture.from_entries(
        [
            {"name": "a", "data_files": str(tmp_path / "x*.json"), "chat_template": "plain"},
            {"data_files": [str(tmp_path / "y.jsonl")], "weight": 0.5, "image_folder": "/pictures"},
            {"data_files": str(tmp_path / "x1.json"), "chat_template": str(template)},
        ],
        VICUNA,
        image_folder="/images",
    )
    assert [(len(part), part.template.name, part.weight) for part in mixture.parts] == [
        (5, "plain", 1.0),
        (4, "vicuna_v1", 0.5),
        (2, "mine", 1.0),
    ]
    folders = [str(file.image_folder) for part in mixture.parts for file in part.files]
    assert folders == ["/images", "/images", "/pictures", "/images"]


def test_a_home_directory_by_its_sign(
    make: Callable[..., RecordFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make("a.json", 2)
    (tmp_path / "mine.json").write_text('{"user_prefix": "Q: ", "assistant_prefix": "A:", "answer_suffix": "</s>"}')
    entry = {"chat_template": "~/mine.json", "image_folder": "~/pictures"}
    mixture = Mixture.from_entries([{"data_files": name, **entry} for name in ("~/a.json", "~/a*.json")], VICUNA)
    assert [(len(part), part.template.name) for part in mixture.parts] == [(2, "mine")] * 2
    assert {file.image_folder for part in mixture.parts for file in part.files} == {tmp_path / "pictures"}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (None, r"^dataset.train: a list of entries"),
        ([], r"^dataset.train: a list of entries"),
        (["a.json"], r"^dataset.train\[0\]: an object with data_files is expected, found 'a.json'"),
        ([{}], r"^dataset.train\[0\].data_files must be"),
        ([{"data_files": []}], r"data_files must be"),
        ([{"data_files": 5}], r"data_files must be"),
        ([{"data_file": "a"}], r"unknown key 'data_file' .did you mean 'data_files'"),
        ([{"data_files": "none.json"}], r"none.json: cannot be read .No such file"),
        ([{"data_files": "none*.json"}], r"data_files: no file matches 'none\*.json'"),
        ([{"data_files": "a", "weight": 0}], r"weight must be a number above 0, at most 1000, found 0"),
        ([{"data_files": "a", "weight": float("nan")}], r"weight must be a number"),
        ([{"data_files": "a", "weight": "2"}], r"weight must be a number"),
        ([{"data_files": "a", "weight": True}], r"weight must be a number"),
        ([{"data_files": "a", "name": 5}], r"name must be text"),
        ([{"data_files": "a", "chat_template": ["plain"]}], r"chat_template must be text"),
        ([{"data_files": "{file}", "chat_template": "plane"}], r"\[0\].chat_template: .*did you mean 'plain'"),
    ],
)
def test_refuses_a_bad_configuration(make: Callable[..., RecordFile], entries: Any, reason: str) -> None:
    file = str(make("a.json", 1).path)
    for entry in entries or []:
        if isinstance(entry, dict) and entry.get("data_files") == "{file}":
            entry["data_files"] = file
    with pytest.raises(LlavaError, match=reason):
        Mixture.from_entries(entries, VICUNA)
