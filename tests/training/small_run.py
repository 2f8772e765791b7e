"""A small training run that may be killed at any moment and goes on from its newest checkpoint.

    python small_run.py times OUTPUT_DIR MODE SEED KILLS           at random moments, every other time in a save
    python small_run.py points OUTPUT_DIR MODE                     at every operation on files, one after another

Each run is a fork of this process, which has imported everything and computed nothing. One JSON line says what is left.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import paddle
from standstill import stand_still

from paddle_llava import LlavaForConditionalGeneration
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.models.lora import add_lora
from paddle_llava.training.checkpoint import (
    TrainerState,
    checkpoint_folders,
    load_checkpoint,
    optimizer_slots,
    save_checkpoint,
)
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import build_optimizer, select_trainable, trainable
from reference_cases import FIXTURES
from training_samples import Sample, loss, make_sample

MODES: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 1e-3, "mm_projector_lr": 2e-3},
    "tower": {"learning_rate": 1e-3, "vision_tower_lr": 1e-4, "weight_decay": 0.1},
    "lora": {
        "lora": True,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.2,
        "learning_rate": 1e-2,
        "recompute": True,
    },
    "projector": {"freeze_include": ["*llama*", "*lm_head*"], "freeze_exclude": ["*mm_projector*"]},
}
FIXED = {"seed": 1}
FILES = 6
"""How many files a save opens, three to write and three to sync."""
AHEAD = 4
"""Steps that a run may be ahead of its kill."""


class Run:
    """Samples with and without pictures by turns; the first has none, so that the projector's moments come late."""

    def __init__(self, mode: str, total: int = 12) -> None:
        base = {"model_name_or_path": "m", "dataset": {"train": [{}]}, "output_dir": "o", "warmup_steps": 2}
        self.config = TrainingConfig.from_dict({**base, **MODES[mode]})
        paddle.seed(0)
        self.model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_6")
        if self.config.lora:
            names = stored_names(self.model.config, "paddle")
            patterns, rank = self.config.lora_target_modules, self.config.lora_rank
            add_lora(self.model, names, patterns, rank, self.config.lora_alpha, self.config.lora_dropout)
        select_trainable(self.model, self.model.config, self.config)
        self.model.language_model.recompute = self.config.recompute
        self.model.train()
        self.optimizer = build_optimizer(self.model, self.config, total)
        self.state = TrainerState(fixed=FIXED)
        draw = np.random.default_rng(0)
        self.samples = [
            make_sample(self.model.config, draw, 4, 7, *sizes) for sizes in ([], [(50, 90)], [], [(60, 60)])
        ]

    def step(self) -> None:
        paddle.seed(self.state.step)
        row: list[Sample] = [self.samples[self.state.step % 4]]
        value = loss(self.model, [row])
        if not value.stop_gradient:
            value.backward()
        self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)
        self.optimizer._learning_rate.step()
        self.state.step += 1
        self.state.position = [0, self.state.step]

    def save(self, output_dir: Path, **settings: Any) -> Path:
        return save_checkpoint(output_dir, self.model, self.optimizer, self.state, **settings)

    def load(self, folder: Path) -> None:
        self.state = load_checkpoint(folder, self.model, self.optimizer, FIXED)

    def digest(self) -> str:
        """Of every parameter, the optimizer's whole state and the rate."""
        sha = hashlib.sha256(repr((self.optimizer.get_lr(), self.state)).encode())
        for name, tensor in [
            *sorted(self.model.named_parameters()),
            *sorted(optimizer_slots(self.optimizer, trainable(self.model)).items()),
        ]:
            sha.update(name.encode() + tensor.numpy().tobytes())
        return sha.hexdigest()


def train(output_dir: Path, mode: str, steps: int) -> None:
    """To the end, from the newest checkpoint there is, saving at every step."""
    run = Run(mode)
    found = checkpoint_folders(output_dir)
    if found:
        run.load(found[-1])
    while run.state.step < steps:
        run.step()
        run.save(output_dir, keep=1)
    (output_dir / "digest").write_text(run.digest())


def forked(work: Callable[[], object]) -> int:
    """The number of a child process that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def was_killed(child: int) -> bool:
    """Waits for the child, which either ends without an error or is killed."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise SystemExit(f"the run failed with status {status}")
    return False


def killed_at_times(output_dir: Path, mode: str, seed: int, kills: int) -> dict[str, Any]:
    """Whether a run that is killed `kills` times, at random moments or while it saves, ends as one that is not.

    It stands still in a save that is to be killed, and otherwise some saves after the kill is due: however late the
    kill comes, it finds what it is for, and the run not at its end.
    """
    draw = random.Random(seed)
    steps, in_save = AHEAD * kills, 0
    for number in range(kills):
        aimed = number % 2 == 1
        file = draw.randint(FILES + 1, 2 * FILES) if aimed else (AHEAD - 1) * FILES
        newest = checkpoint_folders(output_dir)[-1:]
        child = forked(lambda file=file: (stand_still(file), train(output_dir, mode, steps)))
        if aimed:
            if not os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]):
                raise SystemExit("the run did not come to the save")
        else:
            while checkpoint_folders(output_dir)[-1:] == newest:  # so that runs get on
                time.sleep(0.0005)
            time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        if not was_killed(child):
            raise SystemExit("the run ended by itself")
        in_save += any(output_dir.glob(".checkpoint-*.tmp"))
    unbroken = output_dir.with_name("unbroken")
    for folder in (output_dir, unbroken):
        was_killed(forked(lambda folder=folder: train(folder, mode, steps)))
    same = (output_dir / "digest").read_text() == (unbroken / "digest").read_text()
    return {"kills": kills, "in_save": in_save, "same": same}


def save_and_crash(output_dir: Path, mode: str, point: int) -> None:
    """Save step 2 once more and step 3, but be killed at operation number `point` on files."""
    run = Run(mode)
    run.load(output_dir / "checkpoint-2")
    left = point

    def operation(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            operation()

    sys.addaudithook(watch)
    os.fsync = operation  # a killed process loses nothing that it has written, synced or not
    run.save(output_dir, keep=1)
    run.step()
    run.save(output_dir, keep=1)


def killed_at_points(output_dir: Path, mode: str) -> dict[str, Any]:
    """How many crashes left step 2 and how many step 3 as the newest, and whether all are as they were saved."""
    was_killed(forked(lambda: train(output_dir / "0", mode, 2)))
    crashes: list[Path] = []
    killed = True
    while killed:
        crashes.append(output_dir / str(len(crashes) + 1))
        shutil.copytree(output_dir / "0", crashes[-1])
        killed = was_killed(forked(lambda: save_and_crash(crashes[-1], mode, len(crashes))))

    def check() -> None:
        run = Run(mode)
        digests = []
        for folder in [*reversed(crashes), output_dir / "0"]:
            for whole in checkpoint_folders(folder):
                run.load(whole)
            digests.append(run.digest())
        (output_dir / "digests").write_text(" ".join(digests))

    was_killed(forked(check))
    after, *digests, before = (output_dir / "digests").read_text().split()
    counts = {"step 2": digests.count(before), "step 3": digests.count(after)}
    return {**counts, "whole": sum(counts.values()) == len(digests) and before != after}


if __name__ == "__main__":
    kind, where, mode, *numbers = sys.argv[1:]
    if kind == "times":
        result = killed_at_times(Path(where), mode, *map(int, numbers))
    else:
        result = killed_at_points(Path(where), mode)
    print(json.dumps(result))
