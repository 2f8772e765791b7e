"""A run as it goes: one live line at a terminal, plain lines in a pipe, one JSON line a step in `trainer_log.jsonl`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paddle
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paddle_llava.console import CONTROLS, note
from paddle_llava.training.trackers import Trackers

FILE = "trainer_log.jsonl"
STEPS_BEFORE_ESTIMATE = 10


def tell(text: str) -> None:
    """Say something to a person on stderr: a line as a note, several as the block that they are, its columns kept."""
    lines = CONTROLS.sub("?", text).splitlines()
    if len(lines) == 1:
        note(lines[0])
    else:
        print("\n".join(lines), file=sys.stderr, flush=True)


class TrainingLog:
    """Writes what happened at each step; steps that a resumed run repeats replace what an earlier run said of them.

    Without steps, as when a model is only evaluated, all that is there stays. `quiet` is for the other processes of a
    run, which say and write nothing.
    """

    def __init__(
        self,
        output_dir: Path,
        total_steps: int,
        first_step: int,
        *,
        every: int,
        live: bool,
        quiet: bool = False,
        report_to: Sequence[str] = (),
    ) -> None:
        self._path = Path(os.devnull) if quiet else output_dir / FILE
        self._quiet = quiet
        self._incomplete = False
        self._every = every
        self._total, self._first = total_steps, first_step
        self._sums: dict[str, float] = {}
        output_dir.mkdir(parents=True, exist_ok=True)
        self._trackers = Trackers([] if quiet else report_to, output_dir)
        if self._path.is_file():
            kept = [line for line in _lines(self._path) if not total_steps or line.get("step", 0) <= first_step]
            part = self._path.with_suffix(".tmp")
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(part, self._path)
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=16), TextColumn("{task.fields[said]}"))
        console = Console(file=sys.stderr)
        self._progress = Progress(
            *columns,
            TimeRemainingColumn(compact=True),
            console=console,
            disable=quiet or not live or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=first_step, said="")
        self._plain = not quiet and not (live and console.is_terminal)
        self._started = time.perf_counter()
        self._after_first = self._started

    def __enter__(self) -> TrainingLog:
        self._progress.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._trackers.close()

    def step(self, step: int, loss: float | None, learning_rate: float, counts: Mapping[str, float]) -> None:
        """Report optimizer step `step` (from 1), without a `loss` when it was skipped: `counts` of `tokens` in all,
        `useful` ones (no padding), `targets`, over all processes, and the norm of the gradient as `grad_norm`."""
        self._estimate(step)
        losses = {} if loss is None else {"loss": loss, "losses": 1}
        for key, value in {"steps": 1, **losses, **counts}.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        if step % self._every and step != self._total:
            self._progress.update(self._task, completed=step)
            return
        sums, now = self._sums, time.perf_counter()
        seconds = max(now - self._started, 1e-9)
        loss = sums["loss"] / sums["losses"] if "losses" in sums else None
        line: dict[str, Any] = {
            "step": step,
            "loss": None if loss is None else round(loss, 6),
            "learning_rate": learning_rate,
            "grad_norm": round(sums.get("grad_norm", 0.0) / sums.get("losses", 1), 6),
            "tokens_per_second": round(sums["useful"] / seconds, 1),
            "useful": round(sums["useful"] / max(sums["tokens"], 1), 4),
            "targets": int(sums["targets"]),
            "seconds": round(seconds, 3),
            "peak_memory_gib": round(peak_memory() / 2**30, 3),
        }
        self.write(line)
        said = (
            f"loss {'none' if loss is None else f'{loss:.4f}'}  lr {learning_rate:.2e}  "
            f"{line['tokens_per_second']:,.0f} tokens/s  "
            f"useful {100 * line['useful']:.0f}%"
        )
        self._progress.update(self._task, completed=step, said=said)
        if self._plain:
            print(f"step {step:>{len(str(self._total))}}/{self._total}  {said}", file=sys.stderr, flush=True)
        self._sums, self._started = {}, now

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For work between steps, an evaluation or a checkpoint, whose time is not the steps'."""
        begun = time.perf_counter()
        yield
        taken = time.perf_counter() - begun
        self._started += taken
        self._after_first += taken

    def _estimate(self, step: int) -> None:
        """Say how long the rest takes once ten steps are done; the first, which warms up, is not counted."""
        done = step - self._first
        if done == 1:
            self._after_first = time.perf_counter()
        if done == STEPS_BEFORE_ESTIMATE and step < self._total and not self._quiet:
            each = (time.perf_counter() - self._after_first) / (done - 1)
            left = self._total - step
            tell(f"about {duration(each * left)} for the {left:,} steps that are left, saving and evaluating aside")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one JSON line, such as an evaluation's. That it cannot be written, as on a full disk, is said once and
        ends no training."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._trackers.write(line)
        except OSError as error:
            if not self._incomplete:
                tell(f"{self._path}: cannot be written ({error.strerror or error}); the training goes on without")
            self._incomplete = True


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`, `2 d 5 h`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def peak_memory() -> int:
    """Bytes: the most that this process has held so far, on its device, or on a CPU in main memory."""
    if not paddle.get_device().startswith("cpu"):
        return int(paddle.device.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """What `trainer_log.jsonl` in `output_dir` holds, line by line."""
    return _lines(output_dir / FILE)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the line that a killed run was writing
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
