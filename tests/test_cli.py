"""The `llava` command: its flags, how it ends, and what it keeps quiet about."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from paddle_llava import __version__, chat, console
from paddle_llava.cli import main
from paddle_llava.errors import LlavaError
from terminal import Terminal

LLAVA = [sys.executable, "-c", "import sys; from paddle_llava.cli import main; sys.exit(main())"]


class Opened(Exception):
    """Carries what `open_session` was called with."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch):
    """Gives what a chat command would open a session with, and the pictures."""

    def call(*arguments: str) -> dict[str, Any]:
        taken: dict[str, Any] = {}

        def open_session(model_path: str, params: object, **options: object) -> None:
            taken.update(options, model_path=model_path, params=params)
            raise LlavaError("enough")

        monkeypatch.setattr(chat, "open_session", open_session)
        monkeypatch.setattr(chat, "open_picture", lambda source: taken.setdefault("pictures", []).append(source))
        assert main(["chat", *arguments]) == 2
        return taken

    return call


# --- flags ----------------------------------------------------------------------------------------


def test_the_flags_of_the_document(opened) -> None:
    taken = opened("--model-path", "liuhaotian/llava-v1.6-vicuna-7b", "--image-file", "http://host/bus.jpg", "--fp16")
    assert (taken["model_path"], taken["pictures"], taken["dtype"]) == (
        "liuhaotian/llava-v1.6-vicuna-7b",
        ["http://host/bus.jpg"],
        "float16",
    )
    assert (taken["params"].temperature, taken["params"].max_new_tokens) == (0.2, 512)
    assert (taken["conv_mode"], taken["device"], taken["system"]) == (None, None, None)


def test_underscores_are_hyphens_in_names_and_stay_in_values(opened) -> None:
    taken = opened("--model_path=a_b/c_d", "--image_file", "--my_pic.png", "--stop", "__", "--conv_mode", "vicuna_v1")
    assert (taken["model_path"], taken["pictures"]) == ("a_b/c_d", ["--my_pic.png"])
    assert (taken["params"].stop, taken["conv_mode"]) == (("__",), "vicuna_v1")


def test_flags_that_repeat_and_flags_that_shorten(opened) -> None:
    taken = opened(
        "--model-path", "m", "--image-file", "a", "--image-file", "b", "--stop", "x", "--stop", "y", "--bf16"
    )
    assert (taken["pictures"], taken["params"].stop, taken["dtype"]) == (["a", "b"], ("x", "y"), "bfloat16")
    assert opened("--model-path", "m", "--dtype", "float16")["dtype"] == "float16"
    assert opened("--model-path", "m")["dtype"] is None  # the device decides


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llava {__version__}\n"
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        assert {"chat", "convert", "demo", "doctor"} <= set(capsys.readouterr().out.split())
    assert main(["chat", "--help"]) == 0
    assert "--image-file" in capsys.readouterr().out


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = {"paddle", "PIL", "numpy", "tokenizers", "huggingface_hub", "rich", "pydantic"}
    script = (
        f"import sys; from paddle_llava.cli import main; main(['--help']); sys.exit(bool({heavy} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, timeout=20).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5  # of the processor's time, which other programs on the machine lengthen less


# --- how it ends ----------------------------------------------------------------------------------


def failing(error: BaseException):
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_fault_of_our_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(chat, "open_session", failing(RuntimeError("two\nlines")))
    assert main(["chat", "--model-path", "m"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(
        "llava: error: internal error, please report it: RuntimeError: two lines; rerun with --debug"
    )
    assert told.count("\n") == 1
    assert main(["chat", "--model-path", "m", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(chat, "open_session", failing(PermissionError(13, "Permission denied", "/some/file")))
    assert main(["chat", "--model-path", "m"]) == 2
    assert capsys.readouterr().err == "llava: error: /some/file: Permission denied\n"


def test_an_error_is_one_line_without_controls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chat, "open_session", failing(LlavaError("first\n\n second\x1b[31m 第三")))
    assert main(["chat", "--model-path", "m"]) == 2
    assert capsys.readouterr().err == "llava: error: first second [31m 第三\n"


def test_an_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(chat, "open_session", failing(KeyboardInterrupt()))
    assert main(["chat", "--model-path", "m"]) == 130
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"]])
def test_a_reader_that_leaves_is_no_trouble(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*LLAVA, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


# --- what is said and what is not -----------------------------------------------------------------


def test_a_fallback_is_a_note(demo_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["chat", "--model-path", str(demo_checkpoint), "--engine", "paddle", "--bf16"]
    assert main([*command, "--prompt", "hi", "--max-new-tokens", "1"]) == 0
    told = capfd.readouterr().err
    assert told.startswith("llava: note: bfloat16 has no")
    assert told.count("\n") == 1


def test_warnings_are_notes_and_those_for_developers_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    with console.warnings_as_notes():
        warnings.simplefilter("always")
        warnings.warn("mind\nthe gap", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "llava: note: mind the gap\n"


def test_importing_paddle_hides_its_own_noise_only(capsys: pytest.CaptureFixture[str]) -> None:
    with console.importing_paddle():
        print("WARNING: OMP_NUM_THREADS set to 2, not 1.", file=sys.stderr)
        print("PLEASE USE OMP_NUM_THREADS WISELY.", file=sys.stderr)
        print("the disk is on fire", file=sys.stderr)
        warnings.warn("No ccache found. Please be aware", stacklevel=1)
    assert capsys.readouterr().err == "the disk is on fire\n"


def test_processes_started_after_paddle_are_as_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    with console.importing_paddle():
        pass
    script = "import warnings; warnings.warn('No ccache found. Please'); warnings.warn('mind the gap')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "ccache" not in done.stderr
    assert "mind the gap" in done.stderr


def test_no_paddle_is_told_with_the_remedy() -> None:
    with pytest.raises(LlavaError, match=r"PaddlePaddle cannot be imported .*pip install"), console.importing_paddle():
        raise ImportError("libpaddle.so: no such file")


def test_streams_take_any_byte_and_character(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfea\n"), encoding="utf-8")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "stdout", stdout)
    console.tolerant_streams()
    assert stdin.readline() == "\ufffd\ufffda\n"
    print("公交车", file=stdout, flush=True)
    assert stdout.buffer.getvalue() == b"???\n"  # type: ignore[attr-defined]


def test_a_bar_at_a_terminal_only(demo_checkpoint: Path) -> None:
    with console.progress_bar("loading") as progress:
        assert progress is None
    script = (
        "import sys, time\nfrom paddle_llava.console import progress_bar\n"
        "with progress_bar('loading [red]') as progress:\n"
        "    for i in range(5): progress(i + 1, 5); time.sleep(0.15)\n"
        "sys.exit(7)"
    )
    with Terminal(sys.executable, "-c", script, TERM="xterm") as terminal:
        terminal.wait_for("loading [red]")
        terminal.wait_for("/s")
        terminal.wait_for("100%")
        assert terminal.exit_code() == 7


# --- convert --------------------------------------------------------------------------------------


def test_converted_to_every_layout_it_answers_the_same(
    demo_checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(model: Path) -> str:
        question = [
            "--prompt",
            "描述这张照片",
            "--image-file",
            str(photo),
            "--temperature",
            "0",
            "--max-new-tokens",
            "12",
        ]
        assert main(["chat", "--model-path", str(model), *question]) == 0
        return capsys.readouterr().out

    expected = answer(demo_checkpoint)
    assert len(expected) > 5
    source = demo_checkpoint
    for layout in ("paddle", "original", "hf"):
        assert main(["convert", str(source), str(tmp_path / layout), "--layout", layout]) == 0
        assert f"holds {source} in the {layout} layout" in capsys.readouterr().err
        source = tmp_path / layout
        assert answer(source) == expected
