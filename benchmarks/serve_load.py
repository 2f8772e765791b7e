"""How a server bears many users: tokens a second, the wait for the first token, and errors, by the number of clients.

    python benchmarks/serve_load.py [--model-path FOLDER | --shape 0.1B] [--clients 1,4,16,64] [--peer]

Each client holds conversations of one to four turns, most of them about a picture, streaming and greedy, and sends all
that was said with each turn. With `--peer`, `transformers serve` is asked the same on the same checkpoint in the same
run, one server after the other. Exits with 1 when 16 clients do not get three times the tokens a second of one, or when
there is any error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from peers import Neighbours, Peer, machine, prepare, scratch_folder, table
from serve_clients import Load, Server, llava_server, run, transformers_server, with_template

WANTED = 3.0
OURS, THEIRS = "llava serve", "transformers serve"


def main() -> None:
    options = _options()
    prepare(options.threads)
    counts = [int(count) for count in options.clients.split(",")]
    print(
        f"### Serving, {options.model_path or options.shape}, engine {options.engine}\n\n{machine(options.threads)}",
        flush=True,
    )
    neighbours = Neighbours()
    rows, ours = [], dict[int, Load]()
    with scratch_folder(options.scratch) as scratch:
        folder = _checkpoint(options, scratch)
        flags = ("--max-batch", str(options.max_batch), "--max-queue", "128", "--engine", options.engine)
        servers: dict[str, AbstractContextManager[Server]] = {OURS: llava_server(folder, *flags)}
        if options.peer:
            batching = ("--continuous-batching",) if options.peer_batching else ()
            servers[THEIRS] = transformers_server(folder, *batching)
        for name, server in servers.items():
            with server as running:
                run(running, 2, options.tokens, lambda done: done >= 2)  # warms up
                for count in counts:
                    load = run(running, count, options.tokens, lambda done: done >= options.turns)
                    rows.append(_row(name, load))
                    print(f"- {name}, {count} clients: {load.tokens_per_second:.0f} tokens/s", flush=True)
                    if name == OURS:
                        ours[count] = load
    header = ["", "clients", "turns", "errors", "turns/s", "tokens/s", "first token p50, ms", "p95, ms"]
    print(f"\n{table(header, rows)}\n\n{options.turns} turns a client of up to {options.tokens} tokens.")
    print(f"Other programs, the clients among them, took {neighbours.cores():.1f} of {os.cpu_count()} cores.")
    _verdict(ours)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, help="a checkpoint in the -hf layout; default: random, of --shape")
    parser.add_argument("--shape", default="street", help="street (the demonstration's), 0.1B, 0.2B, 1.1B")
    parser.add_argument("--clients", default="1,4,16,64", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=8, help="of each client (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of the longest answer (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--engine", default="auto", help="paddle or openvino (default: the server's choice)")
    parser.add_argument("--peer", action="store_true", help="ask transformers serve too")
    parser.add_argument("--peer-batching", action="store_true", help="transformers serve with --continuous-batching")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where the checkpoint is made, and removed afterwards")
    return parser.parse_args()


def _checkpoint(options: argparse.Namespace, scratch: Path) -> Path:
    """The one asked for, with a chat template for the peer; the user's own stays as it is."""
    folder = scratch / "model"
    if options.model_path:
        shutil.copytree(options.model_path, folder)
    elif options.shape == "street":
        from paddle_llava.demo.model import write_untrained

        write_untrained(folder)
    else:
        with Peer("random_checkpoint:Builder") as builder:
            builder.call("build", folder, options.shape, "float32")
        from paddle_llava.processing.processor import LlavaProcessor

        LlavaProcessor.from_pretrained(folder).save_pretrained(folder)
    with_template(folder)
    return folder


def _row(name: str, load: Load) -> list[str]:
    errors = ", ".join(f"{count} {kind}" for kind, count in load.errors.items()) or "0"
    return [
        name, str(load.clients), str(len(load.turns)), errors, f"{len(load.turns) / load.seconds:.2f}",
        f"{load.tokens_per_second:.0f}", f"{load.first_token(50):.0f}", f"{load.first_token(95):.0f}",
    ]  # fmt: skip


def _verdict(loads: dict[int, Load]) -> None:
    errors = sum(sum(load.errors.values()) for load in loads.values())
    holds = not errors
    if {1, 16} <= loads.keys():
        ratio = loads[16].tokens_per_second / loads[1].tokens_per_second
        holds &= ratio >= WANTED
        print(f"\n16 clients get {ratio:.2f} times the tokens a second of one (at least {WANTED} wanted).")
    print(f"{'OK' if holds else 'FAILED'}: {errors} errors")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
