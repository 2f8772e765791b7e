"""The parts of the street model's training that need no training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import numpy as np
import pytest

from paddle_llava.data.encoding import encode_sample
from paddle_llava.data.records import RecordFile
from paddle_llava.demo import dataset
from paddle_llava.demo.cells import COLOUR_NAMES, KIND_NAMES, WIDTH, as_numbers, cells_of
from paddle_llava.demo.dataset import CAPTIONS, CONVERSATIONS, write_dataset
from paddle_llava.demo.descriptions import padded_box
from paddle_llava.demo.dialogues import dialogue
from paddle_llava.demo.evaluate import Answered, ask_all, figures, lines
from paddle_llava.demo.eye import Eye, Pictures
from paddle_llava.demo.model import TEMPLATE, write_untrained
from paddle_llava.demo.scenes import draw_scene
from paddle_llava.demo.tongue import Conversations, Tongue, captioned
from paddle_llava.demo.train import CONFIGS
from paddle_llava.demo.vocabulary import all_words
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES
from paddle_llava.training.config import TrainingConfig

SHIPPED_BYTES = 16e6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_untrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> LlavaProcessor:
    return LlavaProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(folder)


def test_each_word_is_one_token(processor: LlavaProcessor) -> None:
    for word in all_words():
        ids = [
            i for i in processor.tokenizer.encode_segment(word, first=True) if processor.tokenizer.decode([i]).strip()
        ]
        assert len(ids) == 1, word


def test_texts_survive_the_tokenizer(processor: LlavaProcessor) -> None:
    scene = draw_scene(3, size=64)
    texts = [text for seed in range(4) for turn in dialogue(scene, seed) for text in (turn.question, turn.answer)]
    for text in [*texts, "zebra 长颈鹿 7.25"]:
        assert processor.tokenizer.decode(processor.tokenizer.encode_segment(text, first=True)) == text


def test_two_bytes_a_weight_fit_the_package(folder: Path) -> None:
    others = sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".json")
    assert (folder / "model.safetensors").stat().st_size / 2 + others < SHIPPED_BYTES


@pytest.mark.parametrize("seed", range(8))
def test_one_cell_speaks_for_each_clear_object(seed: int) -> None:
    scene = draw_scene(seed, size=96)
    cells = cells_of(scene, 8)
    spoken = sorted(
        (
            KIND_NAMES[cells.kind[cell] - 1],
            COLOUR_NAMES[cells.colour[cell] - 1],
            ", ".join(f"{x / 100:.2f}" for x in cells.box[cell]),
        )
        for cell in np.flatnonzero(cells.anchor)
    )
    clear = [(number, it) for number, it in enumerate(scene.objects) if it.clear]
    assert [it[:2] for it in spoken] == sorted((it.kind, it.colour) for _, it in clear)
    for (*_, box), right in zip(
        spoken, sorted((it.kind, it.colour, padded_box(scene, number)) for number, it in clear), strict=True
    ):
        told, true = (np.array([float(x) for x in text.split(", ")]) for text in (box, right[2]))
        assert np.abs(told - true).max() < 0.0101


def test_cells_as_numbers() -> None:
    cells = cells_of(draw_scene(5, size=96), 8)
    numbers = as_numbers(cells)
    assert numbers.shape == (64, WIDTH)
    assert (numbers[:, : len(KIND_NAMES) + 1].argmax(1) == cells.kind).all()
    boxes = numbers[:, -404:].reshape(64, 4, 101)
    things = cells.kind > 0
    assert (boxes[things].argmax(-1) == cells.box[things]).all()
    assert not boxes[~things].any()


@pytest.mark.parametrize("hardest", [0.0, math.inf])
def test_a_packed_row_of_conversations(
    hardest: float, processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    batch = Conversations(processor, 4, hardest=hardest).batch(0)
    length = batch["input_ids"].shape[1]
    assert sum(batch["lengths"][0]) == length == len(batch["labels"])
    places = (batch["input_ids"] == processor.config.image_token_id).sum()
    assert places == len(batch["cells"])
    assert places < 4 * 10 if hardest else places == 4 * 64
    assert batch["sizes"].sum() == (batch["labels"] >= 0).sum() == len(batch["weights"])
    assert len(batch["sizes"]) == len(batch["kinds"])
    tongue = Tongue(model)
    assert np.isfinite(float(tongue.loss(batch)))
    assert set(tongue.judge([batch])) == set(batch["kinds"])


def test_the_eye_reads_what_the_tongue_is_told(processor: LlavaProcessor, model: LlavaForConditionalGeneration) -> None:
    batch = Pictures(processor, 2).batch(0)
    assert batch["pixel_values"].shape == (2, 3, 128, 128)
    eye = Eye(model.vision_tower, 192)
    assert np.isfinite(float(eye.loss(batch)))
    assert 0 <= eye.judge([batch])["iou"] <= 1


def test_data_for_both_stages(tmp_path: Path, processor: LlavaProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "AT_A_TIME", 3)
    write_dataset(tmp_path, 3, workers=0)
    for name, template in ((CAPTIONS, TEMPLATES["plain"]), (CONVERSATIONS, TEMPLATE)):
        samples = list(RecordFile(tmp_path / name))
        assert len(samples) == 3
        for sample in samples:
            assert all(Path(image).is_file() for image in sample.images)
            assert not encode_sample(sample, processor, template, 1024).truncated
    before = (tmp_path / CAPTIONS).stat().st_mtime_ns
    write_dataset(tmp_path, 3, workers=0)
    assert (tmp_path / CAPTIONS).stat().st_mtime_ns == before


def test_captions_and_lists_of_boxes_in_both_languages() -> None:
    scene = draw_scene(1, size=64)
    told = {captioned(scene, Random(seed)) for seed in range(40)}
    assert len(told) == 4
    assert {kind for kind, _ in told} == {"list", "caption"}


def test_figures() -> None:
    turns = [turn for seed in range(6) for turn in dialogue(draw_scene(seed, size=64), seed, split="heldout")]
    best = figures([Answered(turn, 0, turn.answer) for turn in turns])
    worst = figures([Answered(turn, 0, "?") for turn in turns])
    assert best["vqa"]["exact"] == best["box"]["iou"] == best["describe"]["named"] == 1
    assert worst["vqa"]["exact"] == worst["box"]["iou"] == worst["describe"]["named"] == 0
    assert best["describe"]["invented"] == 0
    assert any(line.startswith("vqa") for line in lines(best))


def test_questions_are_asked_alone(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    answered = ask_all(model, processor, 1, turns=3)
    assert len(answered) == 3


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_configuration_files(stage: str) -> None:
    config, notes = TrainingConfig.read(CONFIGS / f"{stage}.json")
    assert not notes
    assert config.mixtoken
    assert json.loads((CONFIGS / f"{stage}.json").read_text())["output_dir"] == stage
