"""How fast and in how much memory a model learns: here, and with `transformers` and `peft` on torch.

    python benchmarks/train_step.py [--shape 0.1B] [--rounds 5] [--mode lora] [--data mixed] [--batch 4]

The same random weights, samples, optimizer (AdamW) and clipping, float32 and the same number of threads; first one
takes all steps of a case, then the other, each in its own process, for both may not find room in the memory at once.
Every step is one forward and backward pass over the whole batch. This project packs its samples (`mixtoken`) into one
sequence, as with a `max_length` of a whole step; the other side pads them to the longest, as `transformers`' collators
do. Only the samples' own tokens are counted, never padding. Exits with 1 when a ratio misses its target.

`mixed` draws lengths as LLaVA's mix of 665,000 conversations has them, roughly: of 16 samples 15 show one picture (576
features) beside a log-normal number of words' tokens (median 160, sigma 0.9, from 24 to 1400), and one shows none
(median 700, sigma 0.7, from 64 to 2000). `equal` has one picture and 128 tokens in each.

The samples of a `mixed` step are drawn at random, as LLaVA's trainer does with `group_by_modality_length` off.
`grouped` (not measured unless named) draws them as it does with that setting on and 8 devices: all with a picture or
none with one, and of each large batch a share that is even in sum, not in length. The padding is then no less: of 8
padded samples' places 58% hold a token, 63% in `mixed`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from peers import GIB, Memory, Neighbours, Peer, machine, prepare, scratch_folder, spread, table, watched
from training_data import Case, draw_samples

PEERS = {"paddle-llava": "paddle_trainer:PaddleTrainer", "transformers": "transformers_trainer:TransformersTrainer"}
FASTER = {"equal": 1.25, "mixed": 2.0, "grouped": 2.0}
SAME_LOSS = 1e-3


class Run(NamedTuple):
    """What one peer did: tokens per second of each round, losses of all steps, and the process's peak memory."""

    rates: list[float]
    losses: list[float]
    memory: Memory


def main() -> None:
    options = _options()
    prepare(options.threads)
    print(f"### Training steps, {options.shape} shape, float32\n\n{machine(options.threads)}", flush=True)
    neighbours, holds = Neighbours(), True
    rows = []
    with scratch_folder(options.scratch) as scratch:
        folder = scratch / options.shape
        with Peer("random_checkpoint:Builder") as builder:
            builder.call("build", folder, options.shape, "float32")
        for mode in options.mode:
            for case in options.data:
                runs = _measure(folder, mode, case, options)
                rows += _rows(mode, case, runs)
                holds &= _holds(case, runs)
    print(table(["", *PEERS, "ratio", "wanted"], rows))
    print(
        f"\nMedians (least-greatest) of {options.rounds} steps of {options.batch} samples after one to warm up. "
        f"Meanwhile other programs took {neighbours.cores():.1f} of {os.cpu_count()} cores."
    )
    print(f"\n{'OK' if holds else 'FAILED'}: speed, memory and equal losses as wanted")
    sys.exit(not holds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("0.1B", "0.15B", "1.1B"), default="0.1B")
    parser.add_argument("--mode", choices=("lora", "full"), nargs="+", default=["lora", "full"])
    parser.add_argument("--data", choices=("equal", "mixed", "grouped"), nargs="+", default=["equal", "mixed"])
    parser.add_argument("--batch", type=int, default=4, help="samples of a step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="steps measured (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each peer (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where the checkpoint is made, and removed afterwards")
    return parser.parse_args()


def _measure(folder: Path, mode: str, case: Case, options: argparse.Namespace) -> dict[str, Run]:
    """Both peers, one after the other."""
    random = np.random.default_rng(0)
    image_token = json.loads((folder / "config.json").read_text())["image_token_index"]
    batches = [draw_samples(case, options.batch, image_token, random) for _ in range(options.rounds + 1)]
    found: dict[str, tuple[list[dict[str, Any]], Memory]] = {}
    for name, module in PEERS.items():
        with Peer(module) as peer:
            with watched(peer.pid) as memory:
                peer.call("load", folder, mode, len(batches))
                steps = [peer.call("step", samples) for samples in batches]
            found[name] = (steps, memory[0])
    tokens = [sum(len(sample.input_ids) for sample in samples) for samples in batches]
    return {
        name: Run(
            [count / step["seconds"] for count, step in zip(tokens[1:], steps[1:], strict=True)],
            [step["loss"] for step in steps],
            memory,
        )
        for name, (steps, memory) in found.items()
    }


def _rows(mode: str, case: Case, runs: dict[str, Run]) -> list[list[str]]:
    title = {"lora": "LoRA", "full": "full"}[mode]
    rates = [spread(run.rates) for run in runs.values()]
    memory = [run.memory.private / GIB for run in runs.values()]
    return [
        [f"{title}, {case} lengths: tokens/s", *rates, f"{_speed(runs):.2f}", f">= {FASTER[case]}"],
        ["peak memory, GiB", *(f"{gib:.2f}" for gib in memory), f"{memory[0] / memory[1]:.2f}", "<= 1"],
        ["greatest difference of a loss", f"{_difference(runs):.0e}", "", "", f"< {SAME_LOSS}"],
    ]


def _speed(runs: dict[str, Run]) -> float:
    """The median of the steps' ratios: the two took the same samples in the same order."""
    ours, theirs = (run.rates for run in runs.values())
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def _difference(runs: dict[str, Run]) -> float:
    ours, theirs = (run.losses for run in runs.values())
    return max(abs(our - their) for our, their in zip(ours, theirs, strict=True))


def _holds(case: Case, runs: dict[str, Run]) -> bool:
    ours, theirs = runs.values()
    return (
        _speed(runs) >= FASTER[case] and ours.memory.private <= theirs.memory.private and _difference(runs) < SAME_LOSS
    )


if __name__ == "__main__":
    main()
