"""Files that are carried along for other programs: byte for byte, whatever they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paddle_llava import LlavaError, LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.config import Layout
from paddle_llava.convert import convert
from paddle_llava.processing import companions
from reference_cases import FIXTURES

JINJA = "{{ cycler.__init__.__globals__.os.system('touch pwned') }}{% for m in messages %}图{{ m }}{% endfor %}\r\n"
FILES = {
    "chat_template.jinja": JINJA.encode(),
    "chat_template.json": json.dumps({"chat_template": JINJA}).encode(),
    "generation_config.json": b'{"temperature": 0.9, "pad_token_id": 0, "do_sample": true}',
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(FIXTURES / "v1_5", folder)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def templates(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("chat_template.*")}


@pytest.mark.parametrize("layout", ["hf", "original", "paddle"])
def test_converted_they_go_along(
    layout: Layout, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert(checkpoint, tmp_path / "there", layout)
    convert(tmp_path / "there", tmp_path / "back", "hf")
    for folder in (tmp_path / "there", tmp_path / "back"):
        assert templates(folder) == {name: content for name, content in FILES.items() if name.startswith("chat")}
        assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.9
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("model_first", [True, False])
def test_saved_they_go_along_in_either_order(model_first: bool, checkpoint: Path, tmp_path: Path) -> None:
    """And the ids of tokens that the model has, where its weights are written last."""
    pair = [LlavaForConditionalGeneration.from_pretrained(checkpoint), LlavaProcessor.from_pretrained(checkpoint)]
    for part in pair if model_first else pair[::-1]:
        part.save_pretrained(tmp_path / "saved")
    assert templates(tmp_path / "saved") == templates(checkpoint)
    generation = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["do_sample"]) == (0.9, True)
    if not model_first:
        assert generation["pad_token_id"] == pair[0].config.text.pad_token_id


def test_a_damaged_generation_config_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "generation_config.json").write_bytes(b"\xff{")
    convert(checkpoint, tmp_path / "hf", "hf")
    assert set(json.loads((tmp_path / "hf" / "generation_config.json").read_text())) == {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }


def test_a_checkpoint_without_them_gets_none(tmp_path: Path) -> None:
    LlavaProcessor.from_pretrained(FIXTURES / "v1_5").save_pretrained(tmp_path)
    assert templates(tmp_path) == {}


def test_a_template_among_the_processors_settings_gets_its_own_file(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ 1 }}"}))
    LlavaProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    assert templates(tmp_path / "saved") == {"chat_template.jinja": b"{{ 1 }}"}


def test_one_that_is_too_large_is_refused(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_bytes(b"x" * (companions.MAX_BYTES + 1))
    with pytest.raises(LlavaError, match=r"chat_template\.jinja: larger than 1 MiB"):
        LlavaProcessor.from_pretrained(checkpoint)
