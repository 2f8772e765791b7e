"""A result that could not be written is refused before anything is learnt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paddle_llava.chat import open_session
from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID, Layout
from paddle_llava.convert import convert
from paddle_llava.errors import LlavaError
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.result import check_result, template_to_name
from training_runs import Runner, write_records


def check(base: Path, folder: Path, *, lora: bool = False, **changes: Any) -> None:
    """For a model as in `base`, its configuration changed."""
    processor = LlavaProcessor.from_pretrained(base)
    processor.config = replace(processor.config, **changes)
    known = {"model_name_or_path": "m", "dataset": {"train": [{"data_files": "t"}]}, "output_dir": "o", "lora": lora}
    model: Any = SimpleNamespace(config=processor.config)
    check_result(folder, model, processor, TrainingConfig.from_dict(known))


def test_what_can_be_written(demo_checkpoint: Path, tmp_path: Path) -> None:
    for lora in (False, True):
        check(demo_checkpoint, tmp_path / "new", lora=lora)
    check(demo_checkpoint, demo_checkpoint)  # an earlier result
    check(demo_checkpoint, tmp_path, lora=True, projector_type="linear")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "lora", "said"),
    [
        ({"projector_type": "linear"}, False, "the hf layout has no projector of type 'linear'"),
        ({"projector_type": "mlp3x_gelu"}, False, "the hf layout has no projector of type 'mlp3x_gelu'"),
        ({"projector_type": "mlp3x_gelu"}, True, "this layout has no name for projector.4.weight"),
        ({"image_grid_pinpoints": ((112, 224),), "unpad": False}, False, "no anyres without spatial_unpad"),
        ({"image_token_id": ORIGINAL_IMAGE_TOKEN_ID}, False, "token '<image>' cannot have id"),
    ],
)
def test_what_cannot(demo_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], lora: bool, said: str) -> None:
    with pytest.raises(LlavaError, match=f"^the result of training m could not be written: .*{said}"):
        check(demo_checkpoint, tmp_path, lora=lora, **changes)


@pytest.fixture
def run(tmp_path: Path, demo_checkpoint: Path) -> Runner:
    return Runner(tmp_path, demo_checkpoint, write_records(tmp_path, 2, pictures=False))


def test_a_folder_with_other_weights(run: Runner) -> None:
    out = run.folder / "run" / "out"
    out.mkdir(parents=True)
    (out / "model_state.pdparams").write_bytes(b"theirs")
    with pytest.raises(LlavaError, match=r"holds weights in .pdparams files already; write to another folder"):
        run("run", max_steps=1)
    assert [path.name for path in out.iterdir()] == ["model_state.pdparams"]


def test_a_disk_that_is_full_at_the_end(run: Runner) -> None:
    out = run.folder / "run" / "out"
    out.mkdir(parents=True)
    (out / "preprocessor_config.json").symlink_to("/dev/full")
    steps = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(LlavaError, match=r"out: the result cannot be written \(No space left on device\)"):
        run("run", **steps)
    (out / "preprocessor_config.json").unlink()
    run("run", **steps)
    assert run.heard("going on from")
    assert json.loads((out / "training_result.json").read_text()) == {"steps": 1}


def test_the_folder_of_the_base(run: Runner) -> None:
    base = run.folder / "base"
    shutil.copytree(run.checkpoint, base)
    (run.folder / "link").symlink_to(base)
    own = {"model_name_or_path": str(base), "output_dir": str(run.folder / "link"), "max_steps": 1}
    with pytest.raises(LlavaError, match=r"output_dir: .*link holds the model that this run starts from"):
        run("run", **own)
    assert (base / "model.safetensors").read_bytes() == (run.checkpoint / "model.safetensors").read_bytes()
    run("run", **own, do_train=False, do_eval=True)
    run("run", **own, lora=True, lora_rank=2)


# --- the template goes along


def recorded(folder: Path) -> str | None:
    return json.loads((folder / "config.json").read_text()).get("conv_mode")


def base_in(folder: Path, source: Path, **settings: Any) -> Path:
    """A copy of the checkpoint `source` whose `config.json` has `settings` too."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_a_result_is_chatted_with_in_the_template_of_its_training(run: Runner) -> None:
    out = run("named", conv_mode="mpt", max_steps=1)
    assert recorded(out) == "mpt"
    assert open_session(str(out), SamplingParams()).template == TEMPLATES["mpt"]
    data = {"dataset": {"train": [{"data_files": str(run.data), "chat_template": "llava_v0"}]}}
    assert recorded(run("of_the_data", **data, max_steps=1)) == "llava_v0"
    assert not run.heard("--conv-mode")
    assert recorded(run("default", max_steps=1)) is None


def test_a_template_of_ones_own_is_told(run: Runner) -> None:
    mine = run.folder / "mine.json"
    mine.write_text(json.dumps({"user_prefix": "Q: ", "assistant_prefix": " A:", "answer_suffix": "</s>"}))
    base = base_in(run.folder / "base", run.checkpoint, conv_mode="mpt")
    out = run("own", model_name_or_path=str(base), conv_mode=str(mine), max_steps=1)
    assert recorded(out) is None
    (line,) = (line for line in run.said if "--conv-mode" in line)
    assert line.endswith("chat with it needs --conv-mode FILE")


def test_an_adapter_in_another_template_than_its_bases(run: Runner) -> None:
    """Which it cannot say, and the base model goes on saying its own when it is merged."""
    base = base_in(run.folder / "base", run.checkpoint, conv_mode="mpt")
    adapter = {"model_name_or_path": str(base), "lora": True, "lora_rank": 2, "max_steps": 1}
    out = run("other", **adapter, conv_mode="llava_v0")
    assert run.heard("template llava_v0, but its base model's own is mpt: chat with it needs --conv-mode llava_v0")
    convert(base, run.folder / "merged", "hf", lora_path=out)
    assert recorded(run.folder / "merged") == "mpt"


@pytest.mark.parametrize(
    ("name", "own", "lora", "said"),
    [
        ("vicuna_v1", None, True, None),
        ("vicuna_v1", "v1", True, None),
        ("mpt", "mpt", True, None),
        ("mpt", None, False, None),
        ("plain", "mpt", True, None),
        ("mpt", None, True, "its base model's own is vicuna_v1: chat with it needs --conv-mode mpt"),
        ("vicuna_v1", "mpt", True, "its base model's own is mpt: chat with it needs --conv-mode vicuna_v1"),
    ],
)
def test_when_a_template_has_to_be_named(name: str, own: str | None, lora: bool, said: str | None) -> None:
    line = template_to_name(TEMPLATES[name], own, lora=lora)
    assert line is None if said is None else line is not None and line.endswith(said)


@pytest.mark.filterwarnings("ignore:.*guessed from the folder's name")
@pytest.mark.parametrize("layout", ["hf", "original", "paddle"])
@pytest.mark.parametrize(("folder", "settings"), [("base", {"conv_mode": "mpt"}), ("some-mpt", {})])
def test_converting_keeps_the_template(
    tmp_path: Path, demo_checkpoint: Path, folder: str, settings: dict[str, str], layout: Layout
) -> None:
    """Also one that the name of the source's folder gives away."""
    base = base_in(tmp_path / folder, demo_checkpoint, **settings)
    convert(base, tmp_path / "target", layout)
    assert LlavaProcessor.from_pretrained(tmp_path / "target").template == TEMPLATES["mpt"]
    convert(demo_checkpoint, tmp_path / "default", layout)
    assert recorded(tmp_path / "default") is None


def test_captions_leave_the_template_as_it_was(run: Runner) -> None:
    base = base_in(run.folder / "base", run.checkpoint, conv_mode="mpt")
    data = write_records(run.folder, 2, name="captions.json")
    records = json.loads(data.read_text())
    data.write_text(json.dumps([record for record in records if "image" in record]))
    assert recorded(run("captions", data=data, model_name_or_path=str(base), conv_mode="plain", max_steps=1)) == "mpt"
