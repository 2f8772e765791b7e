"""Every way to run a LLaVA on this CPU, one against another: ours, `transformers` and llama.cpp.

    python benchmarks/cpu_engines.py [--shape 1.1B] [--peers openvino-int4 llama.cpp-Q4_0]

Random weights of one shape and the same work for all: encoding a picture, prefill and decoding at two lengths, a first
turn (a picture, 600 tokens in, 64 out) and the first token of a second. In each round every peer has its turn in a
fresh process, which loads the model. llama.cpp is built at the first time (`llama_cpp_source.py`). Prints Markdown,
with the part of the memory's measured bandwidth that each decoding takes to read weights, and writes a picture. Exits
with 1 when a ratio that this project promises does not hold.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

import llama_cpp_source
from bars import Panel, bar_charts
from paddle_llava.checkpoints.names import parameter_shapes
from peers import GIB, Memory, Neighbours, Peer, machine, prepare, scratch_folder, spread, table, watched
from random_checkpoint import random_config


class Kind(NamedTuple):
    """A peer: its engine, the files that it reads, and how many tokens it decodes to be measured."""

    engine: str
    files: str
    tokens: int


class Visit(NamedTuple):
    """What a peer's turn in a round gave: seconds of each work, and memory while the process lived."""

    seconds: dict[str, float]
    memory: Memory


class Promise(NamedTuple):
    """In `work`, `ours` takes at most the part 1 / `times` of `theirs`."""

    work: str
    ours: str
    theirs: str
    times: float


PEERS = {
    "openvino-int4": Kind("openvino", "int4", 32),
    "openvino-int8": Kind("openvino", "int8", 32),
    "paddle-fp32": Kind("paddle", "checkpoint", 8),
    "transformers-bf16": Kind("bfloat16", "checkpoint", 16),
    "transformers-fp32": Kind("float32", "checkpoint", 8),
    "llama.cpp-Q4_0": Kind("llama.cpp", "Q4_0", 32),
    "llama.cpp-Q8_0": Kind("llama.cpp", "Q8_0", 32),
}
FITTING = {"7B": ("openvino-int4", "llama.cpp-Q4_0")}  # where not all peers fit into 24 GiB
ROUNDS = {"7B": 2}
TRIAL = "0.1B"  # to see the benchmark run; nothing is promised of it
DECODE, PREFILL = "decode 600", "prefill 600"
PROMISES = (
    Promise(DECODE, "openvino-int8", "transformers-bf16", 3.5),
    Promise(DECODE, "openvino-int8", "llama.cpp-Q8_0", 1.1),
    Promise(DECODE, "openvino-int4", "transformers-bf16", 5.5),
    Promise(DECODE, "openvino-int4", "llama.cpp-Q4_0", 1.0),
    Promise(PREFILL, "openvino-int8", "transformers-bf16", 1.4),
    Promise(PREFILL, "openvino-int8", "llama.cpp-Q8_0", 3.0),
    Promise(PREFILL, "openvino-int4", "transformers-bf16", 1.4),
    Promise(PREFILL, "openvino-int4", "llama.cpp-Q4_0", 1.7),
    Promise("first turn", "openvino-int8", "transformers-bf16", 2.5),
    Promise("first turn", "openvino-int8", "llama.cpp-Q8_0", 1.3),
    Promise("first turn", "openvino-int4", "transformers-bf16", 2.5),
    Promise("first turn", "openvino-int4", "llama.cpp-Q4_0", 1.3),
)
MOST_OF_TURN_1 = 0.1
LARGE = {"memory": 6.0, "load": 15.0, "rate": 6.0, "bandwidth": 42e9}  # what the 7B in int4 is to keep within


def main() -> None:
    options = _options()
    prepare(options.threads)
    if any(PEERS[name].engine == "llama.cpp" for name in options.peers):
        llama_cpp_source.build()
    print(f"### CPU engines, {options.shape} shape\n\n{machine(options.threads)}", end="")
    print(f"- openvino {importlib.metadata.version('openvino')}, llama.cpp of llama-cpp-python ", end="")
    print(f"{llama_cpp_source.VERSION}; load average at the start {os.getloadavg()[0]:.1f}", flush=True)
    with Peer("read_bandwidth:Reader") as reader:
        bandwidth = reader.call("bandwidth", options.threads)
    print(f"- memory is read at {bandwidth / 1e9:.1f} GB/s\n", flush=True)
    neighbours = Neighbours()
    with scratch_folder(options.scratch) as scratch:
        read = _make_files(scratch, options)
        rounds = [{name: _visit(name, scratch, options) for name in options.peers} for _ in range(options.rounds)]
    print(_report(rounds, read, bandwidth))
    print(f"\nMedians (least-greatest) of {options.rounds} rounds, {options.threads} threads. ", end="")
    print(f"Meanwhile other programs took {neighbours.cores():.1f} of {os.cpu_count()} cores.")
    if options.plot:
        options.plot.write_text(_plot(rounds, options.shape))
    sys.exit(options.shape != TRIAL and _verdict(rounds, options, bandwidth))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=(TRIAL, "1.1B", "7B"), default="1.1B")
    parser.add_argument("--peers", nargs="+", choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, help="(default: 3, of the 7B 2)")
    parser.add_argument("--contexts", type=int, nargs="+", default=(600, 2400), help="lengths of prefill")
    parser.add_argument("--threads", type=int, default=2, help="threads of each peer (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where models are made, and removed afterwards")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="a picture of the medians")
    options = parser.parse_args()
    options.rounds = options.rounds or ROUNDS.get(options.shape, 3)
    options.peers = tuple(options.peers or FITTING.get(options.shape, PEERS))
    return options


def _make_files(scratch: Path, options: argparse.Namespace) -> dict[str, float]:
    """The files of all peers; returns for each peer the bytes of weights that decoding a token reads."""
    config, _ = random_config(options.shape, "float16")
    decoder = [shape for name, shape in parameter_shapes(config).items() if name.startswith(("language_model.l", "lm"))]
    parameters = sum(shape[0] * shape[-1] if len(shape) > 1 else shape[0] for shape in decoder)
    read: dict[str, float] = {}
    for name in options.peers:
        kind = PEERS[name]
        folder = scratch / kind.files
        if kind.files == "checkpoint":
            read[name] = parameters * (2 if kind.engine == "bfloat16" else 4)
            if not folder.exists():
                with Peer("random_checkpoint:Builder") as builder:
                    builder.call("build", folder, options.shape, "float16")
        else:
            module = "openvino_graphs:OpenVINOBuilder" if kind.engine == "openvino" else "gguf_files:GGUFBuilder"
            with Peer(module) as builder:
                read[name] = builder.call("build", folder, options.shape, kind.files)
    return read


def _visit(name: str, scratch: Path, options: argparse.Namespace) -> Visit:
    kind = PEERS[name]
    config, _ = random_config(options.shape, "float16")
    with Peer("engine_peer:EnginePeer") as peer:
        with watched(peer.pid) as memory:
            seconds = {"load": peer.call("load", kind.engine, scratch / kind.files, config.image_token_id)}
            seconds |= peer.call("measure", tuple(options.contexts), kind.tokens)
        print(f"{name}: first turn {seconds['first turn']:.1f} s", file=sys.stderr, flush=True)
        return Visit(seconds, memory[0])


def _report(rounds: list[dict[str, Visit]], read: dict[str, float], bandwidth: float) -> str:
    peers = list(rounds[0])
    rows = []
    for work in rounds[0][peers[0]].seconds:
        values = {name: [visits[name].seconds[work] for visits in rounds] for name in peers}
        kind, _, length = work.partition(" ")
        if kind == "prefill":
            rates = {name: [int(length) / seconds for seconds in values[name]] for name in peers}
            rows.append([f"prefill of {length}, tokens/s", *(spread(rates[name]) for name in peers)])
        elif kind == "decode":
            rates = {name: [1 / seconds for seconds in values[name]] for name in peers}
            rows.append([f"decode at {length}, tokens/s", *(spread(rates[name], 1) for name in peers)])
            parts = [f"{median(rates[name]) * read[name] / bandwidth:.2f}" for name in peers]
            rows.append(["  of the read bandwidth", *parts])
        else:
            rows.append([NAMES[work], *(spread(values[name], 2) for name in peers)])
    for field, label in (("resident", "peak memory, GiB"), ("private", "of it without mapped files, GiB")):
        values = {name: [getattr(visits[name].memory, field) / GIB for visits in rounds] for name in peers}
        rows.append([label, *(f"{max(values[name]):.2f}" for name in peers)])
    return table(["", *peers], rows)


NAMES = {
    "load": "load, s",
    "encode": "vision encoding, s",
    "first token": "first turn: first token, s",
    "first turn": "first turn: 64 tokens, s",
    "second turn": "second turn: first token, s",
}


def _ratios(rounds: list[dict[str, Visit]], work: str, ours: str, theirs: str) -> list[float]:
    """How many times as fast, in each round."""
    return [visits[theirs].seconds[work] / visits[ours].seconds[work] for visits in rounds]


def _verdict(rounds: list[dict[str, Visit]], options: argparse.Namespace, bandwidth: float) -> bool:
    """Print what was promised and what came of it; whether anything does not hold."""
    rows, failed = [], False

    def tell(what: str, found: str, wanted: str, holds: bool) -> None:
        nonlocal failed
        failed |= not holds
        rows.append([what, found, wanted, "yes" if holds else "NO"])

    for work, ours, theirs, times in PROMISES:
        if ours in options.peers and theirs in options.peers and work in rounds[0][ours].seconds:
            ratios = _ratios(rounds, work, ours, theirs)
            found = f"{spread(ratios, 2)} times"
            tell(f"{work}: {ours} against {theirs}", found, f"{times} times", median(ratios) >= times)
    for name in options.peers:
        visits = [visits[name] for visits in rounds]
        if PEERS[name].engine == "openvino":
            part = median(visit.seconds["second turn"] / visit.seconds["first token"] for visit in visits)
            what = f"{name}: second turn's first token, of the first turn's"
            tell(what, f"{part:.3f}", f"{MOST_OF_TURN_1}", part <= MOST_OF_TURN_1)
        if options.shape == "7B" and name == "openvino-int4":
            memory = max(visit.memory.resident for visit in visits) / GIB
            load = median(visit.seconds["load"] for visit in visits)
            rate = 1 / median(visit.seconds[DECODE] for visit in visits)
            wanted = LARGE["rate"] * min(1, bandwidth / LARGE["bandwidth"])
            tell(f"{name}: peak memory", f"{memory:.2f} GiB", f"{LARGE['memory']} GiB", memory <= LARGE["memory"])
            tell(f"{name}: load", f"{load:.1f} s", f"{LARGE['load']} s", load <= LARGE["load"])
            tell(f"{name}: {DECODE}", f"{rate:.1f} tokens/s", f"{wanted:.1f} tokens/s", rate >= wanted)
    print("\n" + table(["promised", "found", "wanted", "holds"], rows))
    return failed


def _plot(rounds: list[dict[str, Visit]], shape: str) -> str:
    panels = []
    for work in rounds[0][next(iter(rounds[0]))].seconds:
        seconds = {name: median(visits[name].seconds[work] for visits in rounds) for name in rounds[0]}
        kind, _, length = work.partition(" ")
        if kind == "prefill":
            rates = {name: int(length) / value for name, value in seconds.items()}
            panels.append(Panel(f"Prefill of {length}: tokens/s", rates))
        elif kind == "decode":
            panels.append(Panel(f"Decode at {length}: tokens/s", {name: 1 / value for name, value in seconds.items()}))
        elif work == "first turn":
            panels.append(Panel("First turn, picture to 64th token: seconds (less is better)", seconds))
    return bar_charts(f"CPU engines, {shape} shape", panels)


if __name__ == "__main__":
    main()
