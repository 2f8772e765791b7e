"""The model that comes with the package: it is whole, small, and knows what its page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llava import ChatSession, LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.demo.descriptions import description
from paddle_llava.demo.document import BUS_BOX, document_scene
from paddle_llava.demo.evaluate import ask_all, figures
from paddle_llava.hub import OWN
from paddle_llava.processing.boxes import box_iou, find_boxes

SHIPPED_BYTES = 16_000_000


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained("street")


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return LlavaProcessor.from_pretrained("street")


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in OWN["street"].iterdir()) < SHIPPED_BYTES


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle_llava.hub import local_folder

    assert local_folder("street") == OWN["street"]
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert local_folder("street") == Path("street")


def test_what_it_knows_of_pictures_never_seen(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Below the figures of its page by what 40 pictures may differ from 1,000."""
    table = figures(ask_all(model, processor, 40))
    assert table["vqa"]["exact"] > 0.875
    assert table["box"]["iou"] > 0.79
    assert table["describe"]["named"] > 0.765
    assert table["describe"]["invented"] < 0.20


def test_it_goes_on_about_a_picture(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """The document's dialogue, and what a person would ask after it, in one conversation."""
    scene, session = document_scene(), ChatSession(model, processor)
    assert "".join(session.ask("描述这张照片", image=scene.image)) == description(scene, "zh")
    assert box_iou(find_boxes("".join(session.ask("给出公交车位置的坐标")))[0], BUS_BOX) > 0.8
    assert "".join(session.ask("Describe this picture.")) == description(scene, "en")
    assert "".join(session.ask("What colour is the bus?")) == "red"
