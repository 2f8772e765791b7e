"""VisualDL and TensorBoard, for those who have them: the numbers of `trainer_log.jsonl` once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from paddle_llava.errors import LlavaError

_WRITERS = {"visualdl": ("visualdl", "LogWriter"), "tensorboard": ("tensorboardX", "SummaryWriter")}


class Trackers:
    """Writers to `output_dir/runs/NAME` for each name of `report_to`. Raises `LlavaError` when one's library is not
    installed."""

    def __init__(self, names: Sequence[str], output_dir: Path) -> None:
        self._writers: list[Any] = []
        for name in dict.fromkeys(names):
            if name == "none":
                continue
            library, writer = _WRITERS[name]
            try:
                make = getattr(import_module(library), writer)
            except ImportError:
                raise LlavaError(
                    f"report_to: {name} needs the library {library}; pip install {library}, or leave {name} out "
                    "(trainer_log.jsonl and report.html are written in any case)"
                ) from None
            self._writers.append(make(logdir=str(output_dir / "runs" / name)))

    def write(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of the log, at its step; a skipped step has no loss."""
        for writer in self._writers:
            for key, value in line.items():
                if key != "step" and value is not None:
                    writer.add_scalar(f"train/{key}", value, line["step"])

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
