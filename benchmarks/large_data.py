"""How soon a training on a file as large as LLaVA's pretraining data begins, and in how much memory.

    python benchmarks/large_data.py [--records 558128] [--steps 3]

Writes a JSON list of captions in the form of LLaVA-Pretrain and runs `llava pretrain` on it from a small random model,
packed (`mixtoken`) and not, with two workers; then on the first 1,000 of its records. What the file costs is the
difference. Memory is that of all the run's processes, mapped files included. Exits with 1 when the first step ends
later than 60 s after the command, or the large file takes 4 GiB more than the small one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from paddle_llava.demo.checkpoint import build
from peers import GIB, Neighbours, machine, scratch_folder, status, table

SECONDS, BYTES = 60, 4 * GIB
SMALL = 1000
PICTURES = 64
WORDS = (
    "a",
    "red",
    "bus",
    "in",
    "the",
    "street",
    "under",
    "old",
    "trees",
    "with",
    "people",
    "and",
    "boats",
    "on",
    "water",
)


class Run(NamedTuple):
    """Seconds from the command to the end of its first step, and the peak of its processes' memory in bytes."""

    seconds: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=558_128, help="as many as LLaVA-Pretrain has")
    parser.add_argument("--steps", type=int, default=3, help="steps of each run (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where the data is made, and removed afterwards")
    options = parser.parse_args()
    neighbours, rows, holds = Neighbours(), [], True
    with scratch_folder(options.scratch) as folder:
        build(folder / "model")
        files = {count: write_records(folder, count) for count in (SMALL, options.records)}
        size = files[options.records].stat().st_size / 2**20
        print(
            f"### {options.records:,} records\n\n{machine(os.cpu_count() or 1)}- {size:.0f} MiB of JSON\n", flush=True
        )
        for packed in (False, True):
            small, large = (train(folder, file, packed, options.steps) for file in files.values())
            more = large.memory - small.memory
            title = "packed" if packed else "one by one"
            gib = [f"{each.memory / GIB:.2f}" for each in (small, large)]
            rows += [
                [f"{title}: first step, s", f"{small.seconds:.1f}", f"{large.seconds:.1f}", f"<= {SECONDS}"],
                ["peak memory, GiB", *gib, ""],
                ["of it for the large file, GiB", "", f"{more / GIB:.2f}", f"< {BYTES / GIB:.0f}"],
            ]
            holds &= large.seconds <= SECONDS and more < BYTES
    print(table(["", f"{SMALL:,} records", f"{options.records:,} records", "wanted"], rows))
    print(f"\nMeanwhile other programs took {neighbours.cores():.1f} of {os.cpu_count()} cores.")
    print(f"\n{'OK' if holds else 'FAILED'}: soon enough and small enough")
    sys.exit(not holds)


def write_records(folder: Path, count: int) -> Path:
    """A file of `count` captions of 5 to 30 words, about pictures that many of them share."""
    random = np.random.default_rng(0)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(PICTURES):
        Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8)).save(pictures / f"{number:09}.jpg")
    path = folder / f"{count}.json"
    with path.open("w") as file:
        file.writelines(_records(count, random))
    return path


def _records(count: int, random: np.random.Generator) -> Iterator[str]:
    lengths = random.integers(5, 31, count)
    words = random.integers(len(WORDS), size=int(lengths.sum())).tolist()
    start = 0
    for number, length in enumerate(lengths.tolist()):
        caption = " ".join(WORDS[word] for word in words[start : start + length])
        start += length
        record = {
            "id": f"{number:09}",
            "image": f"{number % PICTURES:09}.jpg",
            "conversations": [
                {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
                {"from": "gpt", "value": caption},
            ],
        }
        yield ("[\n" if number == 0 else ",\n") + json.dumps(record)
    yield "\n]\n"


def train(folder: Path, data: Path, packed: bool, steps: int) -> Run:
    """Run `llava pretrain` on `data` to its end."""
    settings = {
        "model_name_or_path": str(folder / "model"),
        "dataset": {"train": [{"data_files": str(data), "image_folder": str(folder / "pictures")}]},
        "output_dir": str(folder / "out"),
        "freeze_include": ["*llama*", "*lm_head*"],
        "freeze_exclude": ["*mm_projector*"],
        "mixtoken": packed,
        "max_length": 1024,
        "per_device_train_batch_size": 2,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "overwrite_output_dir": True,
        "disable_tqdm": True,
    }
    config = folder / "pretrain.json"
    config.write_text(json.dumps(settings))
    begun, first = time.perf_counter(), 0.0
    command = [str(Path(sys.executable).with_name("llava")), "pretrain", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        said = []
        for line in process.stderr:
            said.append(line)
            if not first and line.startswith("step 1/"):
                first = time.perf_counter() - begun
        process.wait()
        watcher.join()
    if process.returncode or not first:
        raise SystemExit(f"llava pretrain failed: {''.join(said[-5:])}")
    return Run(first, peak[0])


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(_resident, [process.pid, *_children(process.pid)])))
        time.sleep(0.02)


def _resident(pid: int) -> int:
    try:
        return status(pid)["VmRSS"]
    except (OSError, KeyError):  # it has ended
        return 0


def _children(pid: int) -> list[int]:
    try:
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return found + [below for child in found for below in _children(child)]


if __name__ == "__main__":
    main()
