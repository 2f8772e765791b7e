"""How long a model of real size takes to load and to convert, and how much memory: here and in `transformers`.

    python benchmarks/load.py [--layers 4]

A checkpoint with the 7B's names, shapes and shards but fewer decoder layers, in float16, loaded in float32 with the
page cache warm: a fresh process for each load, the two taking turns. Then `llava convert` from the `-hf` layout to
Paddle's, to the original and back. Exits with 1 when a conversion's memory goes beyond the largest shard and 1 GiB.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

from peers import GIB, Memory, Neighbours, Peer, machine, prepare, scratch_folder, spread, table, watched

PEERS = {"paddle-llava": "paddle_peer:PaddlePeer", "transformers": "transformers_peer:TransformersPeer"}
LAYOUTS = ("hf", "paddle", "original", "hf")


class Load(NamedTuple):
    """One load by one peer."""

    import_seconds: float
    seconds: float
    memory: Memory


class Conversion(NamedTuple):
    """One conversion; `bound` is the most memory that it may take, `size` what it wrote, all in bytes."""

    step: str
    seconds: float
    size: int
    memory: Memory
    bound: int


def main() -> None:
    options = _options()
    prepare(options.threads)
    print(f"### Loading and converting, the 7B's shapes with {options.layers} decoder layers\n")
    print(machine(options.threads), end="", flush=True)
    neighbours = Neighbours()
    with scratch_folder(options.scratch) as scratch:
        folder = scratch / "0-hf"
        with Peer("random_checkpoint:Builder") as builder:
            shard = builder.call("build", folder, "7B", "float16", options.layers, options.shards)
        shards = len([*folder.glob("*.safetensors")])
        print(f"- {_size(folder) / GIB:.2f} GiB of float16 in {shards} shards, page cache warm\n", flush=True)
        rounds = [{peer: _load(name, folder) for peer, name in PEERS.items()} for _ in range(options.rounds + 1)]
        print(_load_report(rounds[1:]), flush=True)  # the first has warmed the page cache
        conversions = []
        for number, (source, target) in enumerate(itertools.pairwise(LAYOUTS)):
            conversions.append(_convert(scratch, number, source, target, shard))
    print(_conversion_report(conversions))
    print(f"\nMeanwhile other programs took {neighbours.cores():.1f} of {os.cpu_count()} cores.")
    _verdict(conversions)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (the 7B has 32; default: %(default)s)")
    parser.add_argument("--shards", type=int, default=3, help="files of weights (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="loads measured (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each peer (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are made, and removed afterwards")
    return parser.parse_args()


def _load(name: str, folder: Path) -> Load:
    with Peer(name) as peer:
        with watched(peer.pid) as memory:
            seconds = peer.call("load", folder)
        return Load(peer.import_seconds, seconds, memory[0])


def _convert(scratch: Path, number: int, source: str, target: str, shard: int) -> Conversion:
    """From the `number`-th folder to the next, whose name begins with its number."""
    read, written = scratch / f"{number}-{source}", scratch / f"{number + 1}-{target}"
    with Peer(PEERS["paddle-llava"]) as peer:
        with watched(peer.pid) as memory:
            seconds = peer.call("convert", read, written, target, shard)
        return Conversion(f"{source} to {target}", seconds, _size(written), memory[0], shard + GIB)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _load_report(rounds: list[dict[str, Load]]) -> str:
    measures = {
        "load, s": lambda load: load.seconds,
        "import before it, s": lambda load: load.import_seconds,
        "peak resident memory, GiB": lambda load: load.memory.resident / GIB,
        "of it without mapped files, GiB": lambda load: load.memory.private / GIB,
    }
    rows = []
    for name, measure in measures.items():
        values = {peer: [measure(loads[peer]) for loads in rounds] for peer in PEERS}
        ours, theirs = (median(values[peer]) for peer in PEERS)
        rows.append([name, *(spread(values[peer], 2) for peer in PEERS), f"{ours / theirs:.2f}"])
    note = f"Medians (least-greatest) of {len(rounds)} loads, each in a fresh process."
    return f"{table(['', *PEERS, 'ratio'], rows)}\n\n{note}\n"


def _conversion_report(conversions: list[Conversion]) -> str:
    header = ["`llava convert`", "s", "GiB/s", "peak resident, GiB", "bound, GiB"]
    rows = [
        [
            conversion.step,
            f"{conversion.seconds:.1f}",
            f"{conversion.size / GIB / conversion.seconds:.2f}",
            f"{conversion.memory.resident / GIB:.2f}",
            f"{conversion.bound / GIB:.2f}",
        ]
        for conversion in conversions
    ]
    return table(header, rows)


def _verdict(conversions: list[Conversion]) -> None:
    broken = [conversion.step for conversion in conversions if conversion.memory.resident > conversion.bound]
    if broken:
        print(f"\nFAILED: more memory than the largest shard and 1 GiB: {', '.join(broken)}")
    else:
        print("\nOK: every conversion stayed within its largest shard and 1 GiB")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
