"""A result that could not be written is refused before anything is learnt."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID
from paddle_llava.errors import LlavaError
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.result import check_result
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
