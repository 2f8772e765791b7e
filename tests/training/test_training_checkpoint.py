from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import FIXED, MODES, Run

from paddle_llava import LlavaError
from paddle_llava.checkpoints.adapter import Adapter, read_adapter, write_adapter
from paddle_llava.training.checkpoint import (
    OPTIMIZER,
    PARAMETERS,
    STATE,
    TrainerState,
    checkpoint_folders,
    load_checkpoint,
)

SMALL_RUN = Path(__file__).with_name("small_run.py")


def small_run(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(SMALL_RUN), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the projector after three steps; copy it to change it."""
    run = Run("projector")
    for _ in range(3):
        run.step()
    return run.save(tmp_path_factory.mktemp("output"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("broken_after", [0, 1, 3])
def test_goes_on_bit_for_bit(mode: str, broken_after: int, tmp_path: Path) -> None:
    """Also before the first step, and when the projector has not had a gradient yet (after the first)."""
    unbroken = Run(mode)
    for _ in range(broken_after):
        unbroken.step()
    folder = unbroken.save(tmp_path)
    again = Run(mode)
    again.load(folder)
    assert again.optimizer.get_lr() == unbroken.optimizer.get_lr()
    assert again.digest() == unbroken.digest()
    before = unbroken.digest()
    for _ in range(3):
        unbroken.step()
        again.step()
    assert again.digest() == unbroken.digest() != before


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_killed_at_random_moments(mode: str, tmp_path: Path) -> None:
    done = small_run("times", tmp_path / "output", mode, 1, 10)
    assert done == {"kills": 10, "in_save": done["in_save"], "same": True}
    assert done["in_save"] >= 5


def test_killed_at_every_operation_on_files(tmp_path: Path) -> None:
    """While a checkpoint replaces the same step's, and the next one replaces it: one of the two is always whole."""
    done = small_run("points", tmp_path, "projector")
    assert done["whole"]
    assert done["step 2"] > 20
    assert done["step 3"] > 4


def test_what_a_checkpoint_holds(saved: Path) -> None:
    assert sorted(files_of(saved)) == sorted([PARAMETERS, OPTIMIZER, STATE])
    assert sorted(path.name for path in saved.parent.iterdir()) == ["checkpoint-3"]
    state = TrainerState(step=3, position=[0, 3], fixed=FIXED)
    assert json.loads((saved / STATE).read_text()) == asdict(state)
    run = Run("projector")
    run.load(saved)
    assert run.state == state


def test_further_files(tmp_path: Path) -> None:
    """Such as the adapter, which is usable by itself."""
    run = Run("lora")
    run.step()
    name = "language_model.layers.0.self_attn.q_proj"
    layer = run.model.language_model.layers[0].self_attn.q_proj
    adapter = Adapter(4, 8.0, pairs={name: (layer.lora_A.numpy(), layer.lora_B.numpy())})
    folder = run.save(tmp_path, also=lambda beside: write_adapter(beside / "adapter", adapter, run.model.config))
    found = read_adapter(folder / "adapter", run.model.config)
    assert np.array_equal(found.pairs[name][0], adapter.pairs[name][0])
    run.step()

    def refuses(beside: Path) -> None:
        raise LlavaError("not this one")

    with pytest.raises(LlavaError, match="not this one"):
        run.save(tmp_path, also=refuses)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


# --- which checkpoints stay


def test_the_oldest_go(tmp_path: Path) -> None:
    run = Run("projector")
    for _ in range(12):
        run.step()
        run.save(tmp_path, keep=None if run.state.step <= 3 else 2)
        if run.state.step == 3:
            assert [folder.name for folder in checkpoint_folders(tmp_path)] == [f"checkpoint-{n}" for n in (1, 2, 3)]
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-11", "checkpoint-12"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_new_one_stays_though_others_are_later(tmp_path: Path, saved: Path) -> None:
    """Those are of a run that was taken up again at an earlier step."""
    for step in (7, 8, 9):
        shutil.copytree(saved, tmp_path / f"checkpoint-{step}")
    run = Run("projector")
    run.step()
    run.save(tmp_path, keep=2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-1", "checkpoint-9"]


def test_the_same_step_again(tmp_path: Path) -> None:
    run = Run("projector")
    run.step()
    run.step()
    first = files_of(run.save(tmp_path, keep=1))
    run.state.skipped = 5
    folder = run.save(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert files_of(folder)[PARAMETERS] == first[PARAMETERS]
    assert files_of(folder)[STATE] != first[STATE]


def test_what_a_killed_run_leaves(tmp_path: Path, saved: Path) -> None:
    for name in ("checkpoint-9", ".checkpoint-12.tmp", "checkpoint-3.old", "checkpoint-4.old", "checkpoint-x"):
        shutil.copytree(saved, tmp_path / name)
    (tmp_path / "checkpoint-9" / STATE).unlink()  # half removed
    (tmp_path / "checkpoint-77").write_text("a file")
    shutil.copytree(saved, tmp_path / "checkpoint-3")
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [
        "checkpoint-3.old",
        "checkpoint-3",
        "checkpoint-4.old",
    ]
    run = Run("projector")
    run.load(checkpoint_folders(tmp_path)[-1])
    run.step()
    assert run.state.step == 4
    run.save(tmp_path, keep=1)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-4"]
    assert not (tmp_path / ".checkpoint-12.tmp").exists()
    assert not list(tmp_path.glob("*.old"))


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint_folders(tmp_path) == []
    assert checkpoint_folders(tmp_path / "nowhere") == []


# --- a full disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_a_full_disk_keeps_the_earlier_one(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, code: int, calls: int
) -> None:
    """It shows at the latest when written bytes are synced, here at the call number `calls`."""
    output = tmp_path / "output"
    shutil.copytree(saved, output / "checkpoint-3")
    before = files_of(output)
    run = Run("projector")
    run.load(output / "checkpoint-3")
    run.step()
    left = calls

    def full(_: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LlavaError, match=r"checkpoint-4: the disk is full; earlier checkpoints are untouched") as e:
            run.save(output, keep=1)
    assert "\n" not in str(e.value)
    assert files_of(output) == before
    assert [path.name for path in output.iterdir()] == ["checkpoint-3"]
    run.save(output, keep=1)
    assert [path.name for path in output.iterdir()] == ["checkpoint-4"]


def test_a_file_that_cannot_grow(tmp_path: Path, saved: Path) -> None:
    """Refused by the kernel in the middle of a file."""
    shutil.copytree(saved, tmp_path / "checkpoint-3")
    before = files_of(tmp_path)
    code = (
        "import sys, resource; from pathlib import Path; from small_run import Run\n"
        "run, output = Run('projector'), Path(sys.argv[1]); run.load(output / 'checkpoint-3'); run.step()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "run.save(output, keep=1)"
    )
    place = {"PYTHONPATH": str(SMALL_RUN.parent)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"paddle_llava.errors.LlavaError: {tmp_path}/checkpoint-4: cannot be written (File too large)"
    assert files_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LlavaError, match=r"file/checkpoint-0: cannot be written \(Not a directory\)"):
        Run("projector").save(tmp_path / "file")


# --- what does not fit


def error_of(folder: Path, mode: str = "projector", fixed: dict[str, Any] = FIXED) -> str:
    run = Run(mode)
    with pytest.raises(LlavaError) as caught:
        load_checkpoint(folder, run.model, run.optimizer, fixed)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoint-3")


@pytest.mark.parametrize("name", [PARAMETERS, OPTIMIZER])
def test_damaged_tensors(copied: Path, name: str) -> None:
    whole = (copied / name).read_bytes()
    for damaged in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"\xff" * 8 + whole[8:]):
        (copied / name).write_bytes(damaged)
        assert "damaged" in error_of(copied)
    (copied / name).unlink()
    assert "cannot be read" in error_of(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "3"},
        {"step": -1},
        {"step": 3.0},
        {"step": None},
        {"step": True},
        {"position": 3},
        {"position": "03"},
        {"position": [[0]]},
        {"position": [-1]},
        {"skipped": None},
        {"best_loss": "low"},
        {"scaler": None},
        {"scaler": {"scale": 1.0}},
        {"scaler": {"scale": "1", "incr_count": 0, "decr_count": 0}},
        {"scaler": {"scale": 1.0, "incr_count": -1, "decr_count": 0}},
        {"fixed": []},
        {"more": 1},
    ],
)
def test_a_state_that_is_none(copied: Path, changes: dict[str, Any]) -> None:
    state = json.loads((copied / STATE).read_text())
    (copied / STATE).write_text(json.dumps(state | changes))
    assert "not written by this version" in error_of(copied)


def test_a_damaged_state(copied: Path) -> None:
    text = (copied / STATE).read_text()
    for damaged in ("", text[:-5], "[]", "\x00" * 100):
        (copied / STATE).write_text(damaged)
        assert "JSON" in error_of(copied)
    (copied / STATE).unlink()
    assert "cannot be read" in error_of(copied)
    assert "cannot be read" in error_of(copied / "nowhere")


def test_other_settings(copied: Path) -> None:
    expected = "was made with seed = 1, now it is 2; resume with the same value"
    assert error_of(copied, fixed={"seed": 2}).endswith(expected)
    assert "was made with max_length = None, now it is 64" in error_of(copied, fixed={"seed": 1, "max_length": 64})


def test_tuples_are_lists_to_json(tmp_path: Path) -> None:
    run = Run("projector")
    run.state.fixed = {"betas": (0.9, 0.99)}
    folder = run.save(tmp_path)
    assert load_checkpoint(folder, run.model, run.optimizer, {"betas": (0.9, 0.99)}).step == 0


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_other_parameters(copied: Path, mode: str) -> None:
    assert "other parameters learnt in that run than in this one (" in error_of(copied, mode)


def test_other_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Run("lora").save(tmp_path)
    monkeypatch.setitem(MODES, "thin", {**MODES["lora"], "lora_rank": 2})
    assert "lora_A is float32 (64, 4) there, float32 (64, 2) in this run" in error_of(folder, "thin")


def test_a_refused_checkpoint_of_other_settings_changes_nothing(copied: Path) -> None:
    run = Run("projector")
    before = run.digest()
    with pytest.raises(LlavaError):
        load_checkpoint(copied, run.model, run.optimizer, {"seed": 2})
    assert run.digest() == before
