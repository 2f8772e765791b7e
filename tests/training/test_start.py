"""From a configuration file to the recipe: which template the conversations are told in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddle_llava.cli import main
from paddle_llava.training import recipe
from paddle_llava.training import start as start_module
from paddle_llava.training.start import Stage, start
from reference_cases import FIXTURES


@pytest.fixture
def told_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gives the name of the template that a run of a checkpoint, whose `config.json` is changed, would take."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (FIXTURES / "v1_5").iterdir():
        (folder / path.name).symlink_to(path)
    taken: list[str] = []

    def train(config: object, model: object, processor: object, template: Any, **_: object) -> Path:
        taken.append(template.name)
        return folder

    monkeypatch.setattr(recipe, "train", train)

    def call(stage: Stage, changes: dict[str, Any], **settings: Any) -> str:
        raw = json.loads((FIXTURES / "v1_5" / "config.json").read_text())
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(raw | changes))
        run = {"model_name_or_path": str(folder), "output_dir": str(tmp_path / "out"), **settings}
        data = {"dataset": {"train": [{"data_files": "train.json"}]}, "device": "cpu"}
        (tmp_path / "run.json").write_text(json.dumps(run | data))
        start(tmp_path / "run.json", stage, {}, say=lambda _: None)
        return taken.pop()

    return call


def test_settings_before_the_file_or_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it was typed, also where typer takes it for the file."""
    taken: list[tuple[Any, ...]] = []
    monkeypatch.setattr(start_module, "start", lambda *arguments: taken.append(arguments))
    settings = ["--output_dir=https://a//b/", "--learning_rate", "1e-4"]
    for arguments in (["run.json", *settings], [*settings, "run.json"], [settings[0], "run.json", *settings[1:]]):
        assert main(["finetune", *arguments]) == 0
    expected = (Path("run.json"), "finetune", {"output_dir": "https://a//b/", "learning_rate": "1e-4"})
    assert taken == [expected] * 3


def test_the_checkpoints_own(told_in) -> None:
    assert told_in("finetune", {}) == "vicuna_v1"
    assert told_in("finetune", {"conv_mode": "llava_llama_2"}) == "llava_llama_2"


def test_plain_for_captions(told_in) -> None:
    assert told_in("pretrain", {"conv_mode": "llava_llama_2"}) == "plain"


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_one_that_the_configuration_names(told_in, stage: Stage) -> None:
    assert told_in(stage, {"conv_mode": "llava_llama_2"}, conv_mode="llava_v0") == "llava_v0"


def test_a_guess_is_told_once(told_in, recwarn: pytest.WarningsRecorder) -> None:
    raw = json.loads((FIXTURES / "v1_5" / "config.json").read_text())["text_config"]
    assert told_in("finetune", {"text_config": raw | {"_name_or_path": "llama-2-7b-chat"}}) == "llava_llama_2"
    assert ["guessed from" in str(warning.message) for warning in recwarn].count(True) == 1


def test_a_guess_that_is_not_needed_is_not_told(told_in, recwarn: pytest.WarningsRecorder) -> None:
    raw = json.loads((FIXTURES / "v1_5" / "config.json").read_text())["text_config"]
    assert told_in("pretrain", {"text_config": raw | {"_name_or_path": "llama-2-7b-chat"}}) == "plain"
    assert not any("guessed from" in str(warning.message) for warning in recwarn)
