"""`make chat` and the document's script, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from paddle_llava.cli import main
from paddle_llava.demo import demo
from paddle_llava.demo.demo import QUESTIONS
from paddle_llava.demo.document import BUS_BOX
from paddle_llava.demo.scoring import find_mentions
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.processing.boxes import box_iou, find_boxes, to_padded_frame
from terminal import Terminal

ROOT = Path(__file__).parents[2]
LLAVA = Path(sys.executable).with_name("llava")
DOOR = ROOT / "examples" / "llava" / "run_predict_multiround.py"


def test_the_demo_without_a_terminal(tmp_path: Path) -> None:
    """The document's dialogue in both languages: what is there is named, the bus is found, and framed in a picture."""
    done = subprocess.run(
        [LLAVA, "demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0
    asked, answers = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    assert asked == [f"USER: {question}" for question in QUESTIONS]
    described, found, described_too, found_too = (answer.removeprefix("ASSISTANT: ") for answer in answers)
    assert find_mentions(described, "zh")["bus", "red"]
    assert find_mentions(described_too, "en")["bus", "red"]
    for answer in (found, found_too):
        assert box_iou(find_boxes(answer)[0], BUS_BOX) > 0.8
    notes = done.stderr.splitlines()
    assert all(note.startswith("llava: note: ") for note in notes)
    assert "tokens/s" in notes[-1]
    with Image.open(tmp_path / "street.png") as street, Image.open(tmp_path / "street-boxes.png") as drawn:
        differ = ImageChops.difference(street.convert("RGB"), drawn.convert("RGB")).getbbox()
        assert differ is not None
        box = to_padded_frame(differ, *street.size)
    assert box_iou(box, BUS_BOX) > 0.7


def test_the_demo_goes_on_with_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Terminal(LLAVA, "demo") as terminal:
        terminal.wait_for("描述这张照片")
        terminal.wait_for("your turn")
        terminal.wait_for("USER: ")
        terminal.type("what colour is the bus?\n")
        terminal.wait_for("ASSISTANT: ")
        terminal.wait_for("USER: ")
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0


def test_the_demo_with_a_model_and_a_picture(
    demo_checkpoint: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flower = str(photo.with_name("flower.jpg"))
    monkeypatch.setattr(demo, "PARAMS", SamplingParams(max_new_tokens=3))
    assert main(["demo", "--model-path", str(demo_checkpoint), "--image-file", flower]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("ASSISTANT: ") == len(QUESTIONS)
    assert "flower.jpg" in captured.err
    assert "drawn streets only" not in captured.err


def test_the_documents_command(demo_checkpoint: Path, photo: Path) -> None:
    """Flags as they stand in the document; questions through a pipe, one of them not text."""
    command = [sys.executable, DOOR, "--model-path", demo_checkpoint, "--image-file", photo, "--fp16"]
    done = subprocess.run(
        [*map(str, command), "--max_new_tokens", "8", "--temperature", "0"],
        input="描述这张照片\n".encode() + b"\xff\xfe\n" + "/image nowhere.jpg\n给出公交车位置的坐标\n".encode(),
        capture_output=True,
        timeout=300,
    )
    told = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert [line.partition(":")[2][:6] for line in told] == [" note:", " error"]
    assert "float16" in told[0]
    assert "nowhere.jpg" in told[1]
    assert len(done.stdout.splitlines()) >= 3
