"""`llava pretrain`, `llava finetune`, `llava merge` and their doors, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llava.checkpoints.adapter import Adapter, write_adapter
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.cli import main
from paddle_llava.device import NPU_ENVIRONMENT
from paddle_llava.pretrained import find_pretrained
from terminal import CTRL_C, Terminal
from training_runs import checkpoints, log, write_records, write_settings

ROOT = Path(__file__).parents[2]
LLAVA = Path(sys.executable).with_name("llava")
SECONDS = 300
"""Until a program is thought to hang, on however busy a machine."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two samples, each about a picture."""
    path = write_records(tmp_path, 4)
    path.write_text(json.dumps(json.loads(path.read_text())[1::2]))
    return path


def test_from_pretraining_to_a_merged_model(
    tmp_path: Path, demo_checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The document's way, with its own keys and patterns and the files of `config/llava`."""
    merged = tmp_path / "merged"
    first, second = tmp_path / "pretrained", tmp_path / "adapter"
    assert main(["pretrain", *_config("pretrain.json", demo_checkpoint, data, first)]) == 0
    changed = _changed(demo_checkpoint, first)
    assert {name.split(".")[0] for name in changed} == {"multi_modal_projector"}
    lora = _config("v1_5/lora_sft_argument.json", first, data, second)
    assert main(["finetune", "--lora_rank", "4", *lora, "--lora_alpha=8", "--do_eval", "true"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(first), str(second)]
    assert "parameters learn" in captured.err
    assert "evaluation after step 1: loss" in captured.err
    arguments = ["--model_name_or_path", str(first), "--lora_path", str(second), "--merge_model_path", str(merged)]
    assert main(["merge", *arguments]) == 0
    assert any("proj" in name for name in _changed(first, merged))
    assert main(["chat", "--model-path", str(merged), "--prompt", "Hello", "--max-new-tokens", "3"]) == 0


def _config(name: str, model: Path, data: Path, out: Path) -> list[str]:
    """One of the repository's files, on other files and for one short step."""
    split = [{"data_files": str(data)}]
    overrides = {
        "model_name_or_path": str(model),
        "dataset": json.dumps({"train": split, "eval": split}),
        "output_dir": str(out),
        "max_steps": "1",
        "gradient_accumulation_steps": "1",
        "per_device_train_batch_size": "1",
        "dataloader_num_workers": "0",
        "warmup_ratio": "0",
        "max_length": "256",
    }
    path = ROOT / "config" / "llava" / name
    return [str(path), *(word for key, value in overrides.items() for word in (f"--{key}", value))]


def _changed(one: Path, other: Path) -> set[str]:
    files = [SafetensorsFile(folder / "model.safetensors") for folder in (one, other)]
    try:
        assert files[0].names() == files[1].names()
        return {name for name in files[0].names() if (files[0].read(name) != files[1].read(name)).any()}
    finally:
        for file in files:
            file.close()


@pytest.mark.parametrize("door", ["pretrain.py", "supervised_finetune.py"])
def test_the_doors(door: str, tmp_path: Path, demo_checkpoint: Path, data: Path) -> None:
    settings = write_settings(tmp_path, demo_checkpoint, data, max_steps=1)
    command = [sys.executable, str(ROOT / "examples" / "llava" / door), str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    said = done.stderr.splitlines()
    assert said[0].startswith("plan ")
    assert [line for line in said if line.startswith("step 1/1")]


def test_the_door_of_merging(tmp_path: Path, demo_checkpoint: Path) -> None:
    """The adapter is for one matrix, so that nothing else may change."""
    config, adapter, merged = find_pretrained(demo_checkpoint).config, tmp_path / "adapter", tmp_path / "merged"
    width = config.text.hidden_size
    pair = np.ones((width, 1), np.float32), np.ones((1, width), np.float32)
    made = Adapter(1, 1.0, base_model=str(demo_checkpoint), pairs={"language_model.layers.0.self_attn.q_proj": pair})
    write_adapter(adapter, made, config)
    command = [sys.executable, str(ROOT / "examples" / "llava" / "merge_lora_params.py")]
    flags = {"model_name_or_path": demo_checkpoint, "lora_path": adapter, "merge_model_path": merged}
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"llava: note: {merged} holds the merged model\n"
    assert _changed(demo_checkpoint, merged) == {"language_model.model.layers.0.self_attn.q_proj.weight"}


def test_ctrl_c(tmp_path: Path, demo_checkpoint: Path, data: Path) -> None:
    settings = write_settings(
        tmp_path,
        demo_checkpoint,
        data,
        max_steps=100_000,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        disable_tqdm=False,
        dataloader_num_workers=1,
    )
    with Terminal(LLAVA, "finetune", settings, TERM="xterm", COLUMNS="150") as terminal:
        terminal.wait_for("vision_tower          0.14 M   frozen", SECONDS)
        terminal.wait_for("loss ", SECONDS)
        terminal.wait_for("left, saving", SECONDS)
        terminal.type(CTRL_C)
        terminal.wait_for("interrupted after step", SECONDS)
        assert terminal.exit_code(SECONDS) == 130
    assert "Traceback" not in terminal.seen
    assert terminal.seen.count("llava: ") == 2  # the estimate, and the interruption
    (step,) = checkpoints(tmp_path / "out")
    assert f"; run the same command again to go on after step {step}\r\n" in terminal.seen
    assert step >= log(tmp_path / "out")[-1]["step"] - 2


def _broken(text: str) -> dict[str, Any]:
    return {"dataset": {"train": [{"data_files": text}]}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (_broken("nowhere.json"), "nowhere.json"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"max_steps": "many"}, "max_steps"),
        ({"model_name_or_path": "/nowhere"}, "/nowhere"),
        ({"freeze_include": ["*nothing*"]}, "*nothing*"),
        ({"device": "npu"}, "plug-in"),
        ({"sharding": "stage3"}, "stage3"),
        ({"report_to": ["visualdl"]}, "pip install visualdl"),
        ({"resume_from_checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    changes: dict[str, Any],
    said: str,
    tmp_path: Path,
    demo_checkpoint: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "visualdl", None)
    for name in NPU_ENVIRONMENT:  # set by the command for itself; what runs later must not see them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    settings = write_settings(tmp_path, demo_checkpoint, data, **changes)
    assert main(["finetune", str(settings), "--max_length", "512"]) == 2
    captured = capsys.readouterr()
    (error,) = (line for line in captured.err.splitlines() if line.startswith("llava: error: "))
    assert said in error
    assert captured.err.endswith(error + "\n")
    assert captured.out == ""


def test_the_npus_switches_come_before_paddle(tmp_path: Path, demo_checkpoint: Path, data: Path) -> None:
    """A Paddle that looks at them when it is imported, and then fails."""
    fake = tmp_path / "fake"
    (fake / "paddle").mkdir(parents=True)
    looks = "import os\nraise ImportError('jit_compile is ' + os.environ.get('FLAGS_npu_jit_compile', 'not set'))\n"
    (fake / "paddle" / "__init__.py").write_text(looks)
    settings = write_settings(tmp_path, demo_checkpoint, data)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLAGS_")}
    for device, expected in (("npu", "jit_compile is 1"), ("cpu", "jit_compile is not set")):
        done = subprocess.run(
            [str(LLAVA), "finetune", str(settings), "--device", device],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**environment, "PYTHONPATH": str(fake)},
        )
        assert done.returncode == 2
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1
