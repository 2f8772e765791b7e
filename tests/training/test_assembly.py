"""Stage 1 from a text model and a CLIP: what is put together, how it learns, and what stage 2 gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from llava_parts import Parts, save, take_apart
from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.checkpoints.names import parameter_shapes
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.errors import LlavaError
from paddle_llava.hub import local_folder
from paddle_llava.processing.templates import TEMPLATES
from paddle_llava.training.assembly import Assembly, draw_projector, find_assembly
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.start import start
from reference_cases import FIXTURES, ONE, picture
from training_runs import log, losses, write_records, write_settings

STAGE_1 = {"freeze_include": ["*llama*", "*lm_head*"], "freeze_exclude": ["*llama.mm_projector*"]}


def settings(parts: Parts, **changes: Any) -> TrainingConfig:
    given = {"model_name_or_path": str(parts.vicuna), "vision_tower": str(parts.clip), "output_dir": "out"}
    return TrainingConfig.from_dict({**given, "dataset": {"train": [{"data_files": "x"}]}, **changes})


def assemble(parts: Parts, **changes: Any) -> Assembly:
    config = settings(parts, **changes)
    assembly = find_assembly(config, Path(config.model_name_or_path))
    assert assembly is not None
    return assembly


def refused(parts: Parts, **changes: Any) -> str:
    def attempt() -> None:
        assembly = assemble(parts, **changes)
        assembly.processor(TEMPLATES["plain"])
        assembly.load("float32")

    with pytest.raises(LlavaError) as error:
        attempt()
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_projector(parts: Parts) -> Path:
    """Its file, under the names that a training wrapper gives."""
    path = parts.vicuna.parent / "mm_projector.safetensors"
    save(path, {f"base_model.model.{name}": array for name, array in parts.projector.items()})
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return take_apart(FIXTURES / "v1_5", tmp_path)


@pytest.fixture
def vicuna(tmp_path: Path) -> Parts:
    """Parts whose vocabulary has no room for `<image>`, as the published Vicuna's."""
    return take_apart(FIXTURES / "v1_6", tmp_path, vocabulary=512)


@pytest.mark.parametrize("name", ["v1_5", "v1_6"])
def test_taken_apart_and_put_together_it_is_the_same(name: str, tmp_path: Path) -> None:
    """Of tied embeddings and of untied ones; a tiled checkpoint's projector serves the untiled model too."""
    parts = take_apart(FIXTURES / name, tmp_path)
    parts.projector.pop("model.image_newline", None)
    assembly = assemble(parts, pretrain_mm_mlp_adapter=str(with_projector(parts)))
    processor = assembly.processor(TEMPLATES["vicuna_v1"])
    inputs = processor(ONE, images=[picture(60, 90)])
    model = assembly.load("float32")
    whole = LlavaForConditionalGeneration.from_pretrained(FIXTURES / name)
    for parameter, array in whole.state_dict().items():
        if parameter != "image_newline":
            assert (model.state_dict()[parameter].numpy() == array.numpy()).all(), parameter
    if name == "v1_5":
        expected = LlavaProcessor.from_pretrained(FIXTURES / name)(ONE, images=[picture(60, 90)])
        assert all((expected[key].numpy() == inputs[key].numpy()).all() for key in inputs)
        assert (model(**inputs).logits.numpy() == whole(**expected).logits.numpy()).all()


def test_tiles_need_a_newline(tmp_path: Path) -> None:
    parts = take_apart(FIXTURES / "v1_6", tmp_path)
    model = assemble(parts, image_aspect_ratio="square").load("float32")
    assert "image_newline" not in model.state_dict()
    edit(parts.clip / "preprocessor_config.json", image_grid_pinpoints=None)
    assert "image_grid_pinpoints" in refused(parts, image_aspect_ratio="anyres")  # for tiles of 336, not 56


def test_a_fresh_projector(parts: Parts) -> None:
    one, other = (assemble(parts, seed=seed).load("float32").state_dict() for seed in (1, 2))
    again = assemble(parts, seed=1).load("float32").state_dict()
    for name, shape in parameter_shapes(assemble(parts).config).items():
        drawn = name.startswith("projector.")
        assert (one[name].numpy() == again[name].numpy()).all()
        assert (one[name].numpy() == other[name].numpy()).all() == (not drawn)
        if drawn:
            bound = shape[0] ** -0.5 if len(shape) == 2 else one[name[:-4] + "weight"].shape[0] ** -0.5
            assert 0.9 * bound < np.abs(one[name].numpy()).max() <= bound
    drawn_newline = draw_projector({"image_newline": (4096,)}, seed=1)["image_newline"]
    assert drawn_newline.std() == pytest.approx(1 / 64, rel=0.05)


def test_from_stage_1_to_stage_2(vicuna: Parts, tmp_path: Path) -> None:
    """Only the projector learns, the loss falls, and the result is a whole LLaVA with `<image>` in its vocabulary."""
    data = write_records(tmp_path, 8)
    names = {"model_name_or_path": str(vicuna.vicuna), "vision_tower": str(vicuna.clip)}
    path = write_settings(
        tmp_path / "one",
        vicuna.vicuna,
        data,
        **{
            **STAGE_1,
            **names,
            "learning_rate": 1e-2,
            "max_steps": 8,
            "per_device_train_batch_size": 8,
            "on_bad_sample": "skip",
        },
    )
    said: list[str] = []
    result = start(path, "pretrain", {}, said.append)
    assert any("assembling a LLaVA from" in line for line in said)
    first, *_, last = losses(result)
    assert last < 0.9 * first
    processor = LlavaProcessor.from_pretrained(result)
    model = LlavaForConditionalGeneration.from_pretrained(result)
    assert processor.image_processor.mode == "pad"
    assert (processor.tokenizer.image_token_id, processor.tokenizer.pad_token_id) == (512, 513)
    assert model.config.text.vocab_size == 576
    begun = assemble(vicuna, seed=42).load("float32").state_dict()
    for name, parameter in model.state_dict().items():
        before = begun[name].numpy()
        found = parameter.numpy()[tuple(slice(side) for side in before.shape)]
        assert (found == before).all() == (not name.startswith("projector.")), name
    stage_2 = write_settings(tmp_path / "two", result, data, max_steps=1, per_device_train_batch_size=8)
    assert log(start(stage_2, "finetune", {}, said.append))[0]["loss"] > 0


def test_room_in_the_vocabulary_is_used(tmp_path: Path) -> None:
    parts = take_apart(FIXTURES / "v1_6", tmp_path, vocabulary=512)
    shutil.rmtree(parts.vicuna)
    whole = take_apart(FIXTURES / "v1_6", tmp_path / "whole")
    raw = json.loads((whole.vicuna / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < 512]
    (whole.vicuna / "tokenizer.json").write_text(json.dumps(raw))
    (whole.vicuna / "tokenizer_config.json").write_text("{}")
    assembly = assemble(whole)
    assert (assembly.config.image_token_id, assembly.config.text.vocab_size) == (512, 528)
    assembly.load("float32").save_pretrained(tmp_path / "saved")
    assembly.processor(TEMPLATES["plain"]).save_pretrained(tmp_path / "saved")
    processor = LlavaProcessor.from_pretrained(tmp_path / "saved")
    assert (processor.tokenizer.image_token_id, processor.padding_id) == (512, 513)
    assert processor.config.text.vocab_size == 528


def test_what_does_not_go_together_is_refused(parts: Parts, tmp_path: Path) -> None:
    assert '"vision_tower": "openai/' in refused(parts, vision_tower=None)
    assert "no such folder" in refused(parts, vision_tower="nowhere")
    assert "adapters are for a whole LLaVA" in refused(parts, lora=True)
    assert "no such file" in refused(parts, pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.bin"))
    assert "image_aspect_ratio must be" in refused(parts, image_aspect_ratio="crop")
    assert "mm_projector_type must be mlp2x_gelu" in refused(parts, mm_projector_type="linear")
    assert "vision_feature_layer 9 is outside" in refused(parts, mm_vision_select_layer=9)
    narrow = {name: array[:-1] for name, array in parts.projector.items()}
    save(tmp_path / "narrow.safetensors", narrow)
    assert "misshapen" in refused(parts, pretrain_mm_mlp_adapter=str(tmp_path / "narrow.safetensors"))
    save(tmp_path / "half.safetensors", {"model.mm_projector.0.weight": parts.projector["model.mm_projector.0.weight"]})
    assert "missing: 'model.mm_projector.0.bias'" in refused(
        parts, pretrain_mm_mlp_adapter=str(tmp_path / "half.safetensors")
    )


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("vicuna", {"model_type": "mistral"}, "model_type 'mistral'"),
        ("vicuna", {"vocab_size": 400}, "the tokenizer has 514 tokens"),
        ("vicuna", {"vocab_size": 515}, "the tokenizer has 514 tokens"),
        ("vicuna", {"hidden_size": 128, "head_dim": None}, "misshapen"),
        ("vicuna", {"num_hidden_layers": 4}, "missing"),
        ("vicuna", {"num_hidden_layers": 2}, "left over"),
        ("clip", {"vision_config": {"model_type": "siglip_vision_model"}}, "only CLIP"),
        ("clip", {"vision_config": {"hidden_size": 48, "image_size": 56, "patch_size": 14}}, "misshapen"),
    ],
)
def test_wrong_configurations_are_refused(parts: Parts, part: str, changes: dict[str, Any], said: str) -> None:
    edit(getattr(parts, part) / "config.json", **changes)
    assert said in refused(parts)


@pytest.mark.parametrize("name", ["lmsys/vicuna-7b-v1.5", "paddlemix/llava/vicuna-7b-v1.5"])
def test_vicuna_is_looked_for_where_it_is_wanted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LlavaError, match=r"lmsys/vicuna-7b-v1\.5: no such folder, nor in the cache"):
        local_folder(name, text_only=True)
    with pytest.raises(LlavaError, match="sees no images"):
        local_folder(name)


def test_a_tower_for_other_pictures(parts: Parts) -> None:
    edit(parts.clip / "preprocessor_config.json", crop_size={"height": 70, "width": 70})
    assert "70" in refused(parts)


def test_a_whole_llava_keeps_its_own_parts(parts: Parts) -> None:
    folder = FIXTURES / "v1_5"
    assert find_assembly(settings(parts, model_name_or_path=str(folder), vision_tower=None), folder) is None
    message = refused(parts, model_name_or_path=str(folder), image_aspect_ratio="pad")
    assert message.startswith("vision_tower, image_aspect_ratio: ")
    assert "is a whole LLaVA" in message


def test_weights_that_are_not_numbers(parts: Parts) -> None:
    path = parts.vicuna / "model.safetensors"
    file = SafetensorsFile(path)
    arrays = {name: file.read(name) for name in file.names()}
    file.close()
    arrays["model.extra.weight"] = arrays.pop("model.norm.weight")
    save(path, arrays)
    message = refused(parts)
    assert "missing: 'model.norm.weight'" in message
    assert "left over: 'model.extra.weight'" in message
    assert paddle.is_grad_enabled()
