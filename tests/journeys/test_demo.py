"""`make chat` and the document's script, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llava.cli import main
from paddle_llava.demo import demo
from paddle_llava.generation.sampling import SamplingParams
from terminal import Terminal

ROOT = Path(__file__).parents[2]
LLAVA = Path(sys.executable).with_name("llava")
DOOR = ROOT / "examples" / "llava" / "run_predict_multiround.py"


def test_the_demo_without_a_terminal() -> None:
    done = subprocess.run([LLAVA, "demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "USER: 描述这张照片"
    assert lines[1].startswith("ASSISTANT: ")
    assert "USER: 给出公交车位置的坐标" in lines
    notes = done.stderr.splitlines()
    assert all(note.startswith("llava: note: ") for note in notes)
    assert "the words mean nothing yet" in notes[0]
    assert "tokens/s" in notes[-1]


def test_the_demo_goes_on_with_a_person() -> None:
    with Terminal(LLAVA, "demo") as terminal:
        terminal.wait_for("the words mean nothing yet")
        terminal.wait_for("描述这张照片")
        terminal.wait_for("your turn")
        terminal.wait_for("USER: ")
        terminal.type("what is on the water?\n")
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
    assert captured.out.count("ASSISTANT: ") == 2
    assert "flower.jpg" in captured.err
    assert "mean nothing" not in captured.err


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
