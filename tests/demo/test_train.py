"""The parts of the street model's training that need no training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import numpy as np
import paddle
import pytest

from paddle_llava.data.encoding import EncodedSample, encode_sample
from paddle_llava.data.records import RecordFile
from paddle_llava.demo import dataset
from paddle_llava.demo.cells import COLOUR_NAMES, KIND_NAMES, WIDTH, Cells, as_numbers, cells_of
from paddle_llava.demo.concepts import aligned_weight
from paddle_llava.demo.dataset import CAPTIONS, CONVERSATIONS, write_dataset
from paddle_llava.demo.descriptions import caption, description, in_sky, mentions, padded_box, scene_as_text
from paddle_llava.demo.dialogues import dialogue
from paddle_llava.demo.evaluate import Answered, ask_all, figures, lines
from paddle_llava.demo.eye import Eye, Pictures
from paddle_llava.demo.guidance import SINK, Focus, focuses_of_question, focuses_of_text
from paddle_llava.demo.kinds import KINDS
from paddle_llava.demo.model import TEMPLATE, build_tokenizer, write_untrained
from paddle_llava.demo.naming import LANGUAGES, Language, plural
from paddle_llava.demo.pen import COLOURS, unnamed
from paddle_llava.demo.scenes import draw_scene
from paddle_llava.demo.shared_picture import Row, lay_out
from paddle_llava.demo.together import HEAD_ALONE, Lessons, Together
from paddle_llava.demo.tongue import TELLING, Questions, Tongue, captioned, encoded
from paddle_llava.demo.train import CONFIGS, FULL, QUICK, check_amount
from paddle_llava.demo.unseen import UnseenWords, without_unseen
from paddle_llava.demo.vocabulary import all_words
from paddle_llava.errors import LlavaError
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


@pytest.mark.parametrize("seed", range(8))
def test_cells_tell_how_many_there_are_and_which_comes_first(seed: int) -> None:
    """As the answers and descriptions do, which are made without cells."""
    scene = draw_scene(seed, size=96)
    cells = cells_of(scene, 8)
    of_object = {number - 1: cell for cell, number in enumerate(cells.owner) if number}
    for turn in (turn for talk in range(9) for turn in dialogue(scene, talk, "en", turns=20, kinds=("count",))):
        for number in turn.objects:
            counts = cells.alike if turn.names[0] == plural(scene.objects[number].kind, "en") else cells.twins
            assert counts[of_object[number]] == int(turn.answer)
    told = [number for _, run in mentions(scene, "en", "describe") for number in run]
    ground = [cells.rank[of_object[number]] for number in told if not in_sky(scene.objects[number].kind)]
    sky = [cells.rank[of_object[number]] for number in told if in_sky(scene.objects[number].kind)]
    assert (ground, sky) == ([*range(1, len(ground) + 1)], [*range(1, len(sky) + 1)])
    assert {number for number, cell in of_object.items() if cells.rank[cell]} == set(told)


def test_what_has_no_name_has_no_twins() -> None:
    cells = cells_of(draw_scene(5, size=96, unnamed=True), 8)
    assert not cells.twins.any()
    assert (cells.alike[cells.kind > 0] > 0).any()


def test_cells_as_numbers() -> None:
    cells = cells_of(draw_scene(5, size=96), 8)
    numbers = as_numbers(cells)
    assert numbers.shape == (64, WIDTH)
    assert (numbers[:, : len(KIND_NAMES) + 1].argmax(1) == cells.kind).all()
    boxes = numbers[:, -404:].reshape(64, 4, 101)
    things = cells.kind > 0
    assert (boxes[things].argmax(-1) == cells.box[things]).all()
    assert not boxes[~things].any()


@pytest.mark.parametrize(("steps", "step"), [(0, 0), (0, TELLING - 1), (math.inf, 0)])
def test_rows_of_questions(
    steps: float, step: int, processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    batch = Questions(processor, 4, steps=steps).batch(step)
    rows, longest, most, width = batch["shape"]
    assert batch["mask"].shape == (rows, 1, most, width, longest + width)
    assert batch["labels"].shape == batch["input_ids"].shape == (rows * longest + len(batch["back"]),)
    places = (batch["input_ids"] == processor.config.image_token_id).sum()
    assert places == len(batch["cells"])
    assert places < rows * 30 if steps else places == rows * 64
    assert batch["sizes"].sum() == (batch["labels"] >= 0).sum() == len(batch["weights"])
    assert len(batch["sizes"]) == len(batch["kinds"])
    assert not steps or set(batch["kinds"]) <= {"what", "colour", "box", "at_box"}
    assert bool(set(batch["kinds"]) & {"describe", "caption", "list"}) == (step > 0)
    tongue = Tongue(model)
    assert np.isfinite(float(tongue.loss(batch)))
    assert {name.split()[0] for name in tongue.judge([batch])} - {"guidance"} == set(batch["kinds"])


def test_a_row_s_questions_do_not_see_each_other(
    processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    """Each is answered as the model itself does that sees one of them alone."""
    tongue = Tongue(model)
    cells = np.random.default_rng(0).random((2, 64, tongue.reader.weight.shape[0]), np.float32)
    texts = ("What is this?", "哪里有一辆红色的公交车？", "Is it?"), ("Where is the bus?",)
    samples = [[encoded(text, "a bus", TEMPLATE, processor) for text in row] for row in texts]
    image = processor.config.image_token_id

    def row(of: list[EncodedSample]) -> Row:
        end = np.flatnonzero(of[0].input_ids == image)[-1] + 1
        return Row(of[0].input_ids[:end], [(sample.input_ids[end:], sample.labels[end:]) for sample in of])

    with paddle.no_grad():
        told = tongue.reader(paddle.to_tensor(np.concatenate(cells)))
        together = tongue.target_logits(lay_out([row(of) for of in samples]), told)[0]
        alone = []
        for number, sample in ((0, samples[0][0]), (0, samples[0][1]), (0, samples[0][2]), (1, samples[1][0])):
            features = tongue.reader(paddle.to_tensor(cells[number]))
            logits = model(paddle.to_tensor(sample.input_ids[None]), image_features=[features]).logits[0].numpy()
            alone.append(logits[np.flatnonzero(sample.labels != -100) - 1])
    assert np.abs(together.numpy() - np.concatenate(alone)).max() < 1e-4


def as_pieces(text: str) -> list[str]:
    """Single letters: tokens by which places in a text can be told."""
    return list(text)


@pytest.mark.parametrize("seed", range(6))
def test_heads_are_told_to_look_at_what_is_asked_for(seed: int) -> None:
    """A name's last token, and those that answer, should look at the cells of the object that is meant."""
    scene = draw_scene(seed, size=96)
    cells = cells_of(scene, 8)
    objects = [None, *scene.objects]

    def seen(focus: Focus) -> set[object]:
        assert focus.weights.sum() == pytest.approx(1)
        return {objects[cells.owner[cell - 5]] for cell in np.flatnonzero(focus.weights[5:]) + 5}

    for language in LANGUAGES:
        for turn in dialogue(scene, seed, language, turns=20):
            if turn.kind == "describe":
                continue
            pieces = as_pieces(f"{turn.question} {turn.answer}")
            answer = np.array([len(turn.question), len(turn.question) + 1])
            focuses = list(focuses_of_question(turn, pieces, cells.owner, cells.anchor, 5, answer))
            if turn.sort in ("count", "exists"):
                assert [focus.token for focus in focuses[1:]] == [answer[0]]
                for focus in focuses:
                    assert seen(focus) == {scene.objects[number] for number in turn.objects}
                    assert (focus.weights[5:] / focus.weights[0] * SINK).sum() == pytest.approx(len(turn.objects))
            elif turn.objects:
                named = {
                    turn.question.lower().index(name.lower()) + len(name) - 1: number
                    for name, number in zip(turn.names, turn.objects, strict=True)
                }
                for focus in focuses:
                    assert seen(focus) == {scene.objects[named.get(focus.token, turn.objects[0])]}
                assert {*named, *answer} >= {focus.token for focus in focuses}
            else:
                assert turn.kind in ("place", "time")
                assert not focuses


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_told_next_is_looked_at(language: Language) -> None:
    scene = draw_scene(3, size=96)
    cells = cells_of(scene, 8)
    for form, make in (("describe", description), ("caption", caption), ("list", scene_as_text)):
        text, named = make(scene, language), mentions(scene, language, form)
        assert len(named) > 1
        focuses = list(focuses_of_text(named, as_pieces(text), cells.owner, 5, np.arange(len(text) - 1)))
        told = {text.lower().index(name.lower()) + len(name) - 1: set(numbers) for name, numbers in named}
        for focus in focuses:
            numbers = {int(cells.owner[cell - 5]) - 1 for cell in np.flatnonzero(focus.weights)}
            if focus.token + 1 in told:
                assert numbers == told[focus.token + 1]


def test_words_of_a_concept_begin_alike(model: LlavaForConditionalGeneration) -> None:
    tokenizer = build_tokenizer()
    rows = model.language_model.embed_tokens.weight.numpy()

    def alike(one: str, other: str) -> float:
        a, b = (rows[tokenizer.token_to_id(word)] for word in (one, other))
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert min(alike("▁bus", "公交车"), alike("▁red", "红色"), alike("0.30", "0.31")) > 0.5
    assert max(alike("▁bus", "▁red"), alike("▁bus", "汽车"), alike("0.10", "0.80")) < 0.4
    weight = aligned_weight(rows, tokenizer)
    first = list(KINDS).index("bus") + 1
    assert weight.shape == (WIDTH, 256)
    similar = weight[first] @ rows.T / np.linalg.norm(rows, axis=1)
    assert tokenizer.id_to_token(int(similar.argmax())) in ("▁bus", "bus", "▁buses", "Bus", "▁Bus", "公交车")


def test_the_eye_reads_what_the_tongue_is_told(processor: LlavaProcessor, model: LlavaForConditionalGeneration) -> None:
    batch = Pictures(processor, 2).batch(0)
    assert batch["pixel_values"].shape == (2, 3, 128, 128)
    eye = Eye(model.vision_tower, 192)
    assert np.isfinite(float(eye.loss(batch)))
    assert 0 <= eye.judge([batch])["iou"] <= 1


def test_what_training_never_shows_is_no_choice() -> None:
    bus, purple, red = KIND_NAMES.index("bus") + 1, COLOUR_NAMES.index("purple") + 1, COLOUR_NAMES.index("red") + 1
    kind, colour = paddle.to_tensor([[bus, 0]]), paddle.to_tensor([[red, 0]])
    zeros = paddle.zeros([1, 2, 17]), paddle.zeros([1, 2, 11])
    kinds, colours = (x.numpy()[0] for x in without_unseen(*zeros, kind, colour))
    assert list(np.flatnonzero(colours[0])) == [purple]
    assert not colours[1].any()
    assert not kinds[1].any()
    assert kinds[0, bus] == 0
    assert kinds[0, KIND_NAMES.index("bench") + 1] < -1000

    unseen, ids = UnseenWords(build_tokenizer()), build_tokenizer().get_vocab()
    row = unseen.row(ids["▁truck"], ("truck", "purple"))
    assert unseen.table[row, ids["▁bus"]] < -1000
    assert unseen.table[row, ids["公交车"]] < -1000
    assert unseen.table[row, ids["▁truck"]] == unseen.table[row, ids["▁car"]] == 0
    row = unseen.row(ids["粉色"], ("bus", "pink"))
    assert list(unseen.table[row].nonzero()[0]) == sorted([ids["紫色"], ids["▁purple"], *_capital("Purple", ids)])
    assert not unseen.table[unseen.row(ids["▁a"], ("bus", "pink"))].any()


def _capital(word: str, ids: dict[str, int]) -> list[int]:
    return [ids[form] for form in (word, f"▁{word}") if form in ids]


def test_no_answer_is_left_out_of_its_own_choices(processor: LlavaProcessor) -> None:
    questions = Questions(processor, 6)
    rows = []
    for step in range(TELLING):
        batch = questions.batch(step)
        targets = batch["labels"][batch["labels"] >= 0]
        assert len(batch["unseen"]) == len(targets)
        assert not questions.unseen.table[batch["unseen"], targets].any()
        rows += batch["unseen"].tolist()
    assert len(set(rows)) > 12


def test_colours_without_a_name_are_far_from_those_that_a_kind_never_has() -> None:
    for seed in range(40):
        plain, scene = draw_scene(seed), draw_scene(seed, unnamed=True)
        assert [it.box for it in plain.objects] == [it.box for it in scene.objects]
        assert all(it.colour in ("", other.colour) for it, other in zip(scene.objects, plain.objects, strict=True))
        color = unnamed(["green", "red"], Random(seed))
        away = {name: math.dist(color, named) for name, named in COLOURS.items()}
        assert min(away.values()) > 60
        assert min(away, key=lambda name: away[name]) in ("green", "red")
    assert any(it.colour == "" for seed in range(5) for it in draw_scene(seed, unnamed=True).objects)


@pytest.mark.parametrize("step", [0, TELLING - 1])
def test_what_is_asked_together_is_about_the_pictures_seen(
    step: int, processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    batch = Lessons(processor, 2, 1).batch(step)
    asked = batch["asked"]
    assert len(batch["pixel_values"]) == asked + 1 == (5 if step else 3)
    assert (batch["input_ids"] == processor.config.image_token_id).sum() == asked * 64
    of_asked = Cells(*(batch[name][:asked].reshape(asked * 64, *batch[name].shape[2:]) for name in Cells._fields))
    assert (as_numbers(of_asked) == batch["cells"]).all()
    together = Together(model)
    figures = together.judge([batch])
    assert figures.keys() >= {"eye kind", "eye iou", *batch["kinds"]}


@pytest.mark.parametrize("step", [0, HEAD_ALONE])
def test_a_new_head_does_not_teach_the_eye(
    step: int, processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    together = Together(model)
    for name, parameter in together.named_parameters():
        parameter.stop_gradient = "reader" in name
    batch = Lessons(processor, 1, 1).batch(0) | {"step": step}
    features = together.eye.features(batch)
    features.retain_grads()
    together.loss_of(features, batch).backward()
    watched = features.grad[batch["asked"] :].abs().max()
    assert bool(watched > 0) == (step >= HEAD_ALONE)
    for parameter in (together.eye.head.weight, model.projector[0].weight, model.language_model.norm.weight):
        assert float(parameter.grad.abs().max()) > 0
    together.clear_gradients()


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
    assert {kind for kind, *_ in told} == {"list", "caption"}


def test_figures() -> None:
    scenes = [draw_scene(seed, size=64, split="heldout") for seed in range(6)]
    turns = [turn for seed, scene in enumerate(scenes) for turn in dialogue(scene, seed)]
    best = figures([Answered(turn, 0, turn.answer) for turn in turns])
    worst = figures([Answered(turn, 0, "?") for turn in turns])
    assert best["vqa"]["exact"] == best["box"]["iou"] == best["describe"]["named"] == 1
    assert worst["vqa"]["exact"] == worst["box"]["iou"] == worst["describe"]["named"] == 0
    assert best["describe"]["invented"] == 0
    assert (
        best["vqa pair"]["asked"] == sum(turn.new_pair and turn.kind not in ("box", "describe") for turn in turns) > 0
    )
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


def test_a_folder_is_of_one_training(tmp_path: Path) -> None:
    """What a quick one has made is no beginning of the whole."""
    check_amount(tmp_path / "amount.json", QUICK)
    check_amount(tmp_path / "amount.json", QUICK)
    with pytest.raises(LlavaError, match="holds a quick training, which this is not; give another --output-dir"):
        check_amount(tmp_path / "amount.json", FULL)
