"""A run as it goes: one live line at a terminal, one JSON line a step in `trainer_log.jsonl`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FILE = "trainer_log.jsonl"


class TrainingLog:
    """Writes what happened at each step; steps that a resumed run repeats replace what an earlier run said of them.

    `quiet` is for the other processes of a run, which say and write nothing.
    """

    def __init__(
        self, output_dir: Path, total_steps: int, first_step: int, *, every: int, live: bool, quiet: bool = False
    ) -> None:
        self._path = Path(os.devnull) if quiet else output_dir / FILE
        self._every = every
        self._sums: dict[str, float] = {}
        self._started = time.perf_counter()
        output_dir.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(self._path) if line.get("step", 0) <= first_step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[said]}"))
        console = Console(file=sys.stderr)
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not live or not console.is_terminal
        )
        self._task = self._progress.add_task("", total=total_steps, completed=first_step, said="")
        self._plain = not quiet and not (live and console.is_terminal)

    def __enter__(self) -> TrainingLog:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: int, loss: float, learning_rate: float, counts: Mapping[str, int]) -> None:
        """Report optimizer step `step` (from 1): `counts` of `tokens` in all, `useful` ones (no padding), `targets`."""
        for key, value in {"steps": 1, "loss": loss, **counts}.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        if step % self._every:
            self._progress.update(self._task, completed=step)
            return
        sums, now = self._sums, time.perf_counter()
        seconds = max(now - self._started, 1e-9)
        line = {
            "step": step,
            "loss": round(sums["loss"] / sums["steps"], 6),
            "learning_rate": learning_rate,
            "tokens_per_second": round(sums["useful"] / seconds, 1),
            "useful": round(sums["useful"] / max(sums["tokens"], 1), 4),
            "targets": int(sums["targets"]),
            "seconds": round(seconds, 3),
        }
        self.write(line)
        said = (
            f"loss {line['loss']:.4f}  lr {learning_rate:.2e}  {line['tokens_per_second']:,.0f} tokens/s  "
            f"useful {100 * line['useful']:.0f}%"
        )
        self._progress.update(self._task, completed=step, said=said)
        if self._plain:
            print(f"step {step}  {said}", file=sys.stderr, flush=True)
        self._sums, self._started = {}, now

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one JSON line, such as an evaluation's."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """What `trainer_log.jsonl` in `output_dir` holds, line by line."""
    return _lines(output_dir / FILE)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # the line that a killed run was writing
            continue
    return lines
