"""What `transformers` answered with the checkpoints in `fixtures/`, which it wrote, and what we answer.

`fixtures/make_fixtures.py` wrote both; `tests/parity` compares more of them live.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddle_llava import ChatSession, LlavaForConditionalGeneration, LlavaProcessor, SamplingParams
from paddle_llava.config import Layout
from paddle_llava.convert import convert
from paddle_llava.models.kv_cache import KVCache
from paddle_llava.processing.images import CLIP_MEAN, CLIP_STD
from recording import RecordingEngine
from reference_cases import (
    ANSWER_TOKENS,
    CASES,
    CHECKPOINTS,
    CONVERSATIONS,
    FIXTURES,
    ODD_SIZES,
    PHOTOS,
    SYSTEM,
    TOLERANCE,
    Case,
    logit_positions,
)


@dataclass(frozen=True)
class Loaded:
    folder: Path
    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    expected: dict[str, np.ndarray]

    def logits(self, case: Case) -> np.ndarray:
        return self.model(**self.processor(list(case.prompts), case.pictures)).logits.numpy()


@pytest.fixture(scope="module", params=CHECKPOINTS)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    folder = FIXTURES / request.param
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    with np.load(FIXTURES / f"{request.param}.npz") as expected:
        return Loaded(folder, model, processor, dict(expected))


@pytest.mark.parametrize("title", CASES)
def test_inputs(loaded: Loaded, title: str) -> None:
    case = CASES[title]
    inputs = loaded.processor.prepare(list(case.prompts), case.pictures)
    for name in ("input_ids", "attention_mask"):
        assert np.array_equal(inputs[name], loaded.expected[f"{title}/{name}"])
    assert ("pixel_values" in inputs) == bool(case.sizes)
    if case.sizes:
        assert inputs["image_sizes"].tolist() == [list(size) for size in case.sizes]
        mean, std = (np.array(color).reshape(3, 1, 1) for color in (CLIP_MEAN, CLIP_STD))
        pixels = (loaded.expected[f"{title}/pixels"] / 255 - mean) / std
        assert inputs["pixel_values"].shape == pixels.shape
        assert np.abs(inputs["pixel_values"] - pixels).max() < 1e-5


@pytest.mark.parametrize("title", CASES)
def test_logits(loaded: Loaded, title: str) -> None:
    logits = loaded.logits(CASES[title])
    positions = logit_positions(loaded.expected[f"{title}/attention_mask"])
    for row, (places, expected) in enumerate(zip(positions, loaded.expected[f"{title}/logits"], strict=True)):
        assert np.abs(logits[row, places] - expected).max() < TOLERANCE


def test_the_pictures_matter(loaded: Loaded) -> None:
    """Else the other tests would compare little."""
    last = np.stack([loaded.expected[f"{height}x{width}/logits"][0, -1] for height, width in ODD_SIZES])
    apart = np.abs(last[:, None] - last).max(axis=-1)
    assert apart[~np.eye(len(last), dtype=bool)].min() > 1.0
    assert len(np.unique(loaded.expected["china/answers"])) > ANSWER_TOKENS


@pytest.mark.parametrize("title", CONVERSATIONS)
def test_greedy_tokens_of_three_turns(loaded: Loaded, title: str) -> None:
    engine = RecordingEngine(loaded.model)
    session = ChatSession(engine, loaded.processor, params=SamplingParams(max_new_tokens=ANSWER_TOKENS))
    texts = ["".join(session.ask(text, photo and PHOTOS / photo)) for text, photo in CONVERSATIONS[title]]
    expected = [[int(token) for token in row if token >= 0] for row in loaded.expected[f"{title}/answers"]]
    assert engine.greedy == expected
    assert texts == [loaded.processor.tokenizer.decode(tokens) for tokens in expected]


def test_generate_gives_the_same_tokens(loaded: Loaded) -> None:
    question, photo = CONVERSATIONS["flower"][0]
    prompt = f"{SYSTEM} USER: <image>\n{question} ASSISTANT:"
    inputs = loaded.processor(prompt, Image.open(PHOTOS / str(photo)))
    tokens = loaded.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS).numpy()
    expected = loaded.expected["flower/answers"][:1]
    assert np.array_equal(tokens, expected[:, expected[0] >= 0])


def singles(case: Case) -> list[tuple[str, list[Image.Image]]]:
    """Each prompt of a batch with its own pictures."""
    pictures = iter(case.pictures)
    return [(prompt, [next(pictures) for _ in range(prompt.count("<image>"))]) for prompt in case.prompts]


def test_a_batch_is_its_rows(loaded: Loaded) -> None:
    case = CASES["batch"]
    batch = loaded.processor(list(case.prompts), case.pictures)
    logits = loaded.model(**batch).logits.numpy()
    answers = loaded.model.generate(**batch, max_new_tokens=12).numpy()
    for row, (prompt, pictures) in enumerate(singles(case)):
        inputs = loaded.processor(prompt, pictures)
        alone = loaded.model(**inputs).logits.numpy()[0]
        assert np.abs(logits[row, -len(alone) :] - alone).max() < 1e-4
        answer = loaded.model.generate(**inputs, max_new_tokens=12).numpy()[0]
        assert np.array_equal(answers[row, : len(answer)], answer)


@pytest.mark.parametrize("first", [1, 20, 40])
def test_a_prompt_in_parts_is_the_whole(loaded: Loaded, first: int) -> None:
    """Also when a part ends within a picture; the last tokens come one by one."""
    case = CASES["two pictures"]
    inputs = loaded.processor(case.prompts[0], case.pictures)
    ids, is_image = inputs["input_ids"], inputs["input_ids"][0] == loaded.model.config.image_token_id
    features = paddle.concat(loaded.model.encode_images(inputs["pixel_values"], inputs["image_sizes"]))
    places = [0, first, *range(ids.shape[1] - 8, ids.shape[1] + 1)]
    cache = KVCache(loaded.model.config.text.num_hidden_layers)
    parts = []
    for start, end in pairwise(places):
        shown = features[int(is_image[:start].sum()) : int(is_image[:end].sum())]
        output = loaded.model(ids[:, start:end], image_features=[shown], cache=cache)
        parts.append(output.logits.numpy()[0])
    assert np.abs(np.concatenate(parts) - loaded.logits(case)[0]).max() < 1e-4


def test_layouts_agree_bit_for_bit(loaded: Loaded, tmp_path: Path) -> None:
    case = CASES["640x480"]
    expected = loaded.logits(case)
    source = loaded.folder
    route: tuple[Layout, ...] = ("original", "paddle", "hf", "paddle", "original", "hf")
    for step, layout in enumerate(route):
        target = tmp_path / f"{step}-{layout}"
        convert(source, target, layout)
        model, processor = LlavaForConditionalGeneration.from_pretrained(target), LlavaProcessor.from_pretrained(target)
        again = Loaded(target, model, processor, {})
        assert np.array_equal(again.logits(case), expected), layout
        source = target


@pytest.mark.parametrize("layout", ["hf", "original", "paddle"])
def test_what_is_saved_loads_alike(loaded: Loaded, layout: Layout, tmp_path: Path) -> None:
    case = CASES["batch"]
    loaded.model.save_pretrained(tmp_path, layout)
    loaded.processor.save_pretrained(tmp_path, layout)
    model, processor = LlavaForConditionalGeneration.from_pretrained(tmp_path), LlavaProcessor.from_pretrained(tmp_path)
    assert np.array_equal(Loaded(tmp_path, model, processor, {}).logits(case), loaded.logits(case))
