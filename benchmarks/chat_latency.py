"""How long a person waits for the first token, turn after turn, and how fast tokens come: here and in `transformers`.

    python benchmarks/chat_latency.py [--shape 1.1B]

The same random weights, the same token ids and pixels, float32 and the same number of threads; the two take turns,
each in its own process. `transformers` is measured in its best way (`generate` with one `DynamicCache` for the whole
conversation) and in the way it is mostly used (the whole conversation and its picture run again at every turn).
Exits with 1 when turn 2 makes a person wait for more than a tenth of turn 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from peers import Neighbours, Peer, machine, prepare, scratch_folder, spread, table

QUESTIONS = (
    "Describe this picture in detail.",
    "What is on the water?",
    "How many people are there?",
    "Is the sky blue?",
    "Why?",
)
MOST_OF_TURN_1 = 0.1
WAYS = ("paddle-llava", "transformers, cache kept", "transformers, run again")


def main() -> None:
    options = _options()
    prepare(options.threads)
    print(f"### Chat latency, {options.shape} shape, float32\n\n{machine(options.threads)}", flush=True)
    neighbours = Neighbours()
    with scratch_folder(options.scratch) as scratch:
        folder = scratch / options.shape
        with Peer("random_checkpoint:Builder") as builder:
            builder.call("build", folder, options.shape, "float16")
        with Peer("paddle_peer:PaddlePeer") as ours, Peer("transformers_peer:TransformersPeer") as theirs:
            ours.call("load", folder)
            theirs.call("load", folder)
            _conversation(ours, theirs, folder, options.tokens, QUESTIONS[:2])  # warms both up
            rounds = [_conversation(ours, theirs, folder, options.tokens, QUESTIONS) for _ in range(options.rounds)]
    print(_report(rounds, options))
    print(f"Meanwhile other programs took {neighbours.cores():.1f} of {os.cpu_count()} cores.")
    _verdict(rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("0.2B", "1.1B"), default="0.2B")
    parser.add_argument("--rounds", type=int, default=5, help="conversations measured (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each answer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each peer (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where the checkpoint is made, and removed afterwards")
    return parser.parse_args()


Turn = dict[str, dict[str, Any]]  # way -> what its peer returned


def _conversation(ours: Peer, theirs: Peer, folder: Path, tokens: int, questions: tuple[str, ...]) -> list[Turn]:
    """One conversation, turn by turn, each turn in all three ways one after another."""
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    ours.call("begin_chat", folder)
    theirs.call("begin_chat")
    turns = []
    for number, question in enumerate(questions):
        asked = ours.call("ask", question, None if number else picture, tokens)
        given = (asked["input_ids"], asked["pixel_values"])
        again = theirs.call("ask", *given, 1, False)
        kept = theirs.call("ask", *given, tokens, True)
        turns.append(dict(zip(WAYS, (asked, kept, again), strict=True)))
    return turns


def _report(rounds: list[list[Turn]], options: argparse.Namespace) -> str:
    header = ["", "new tokens", *WAYS, "ours / cache kept", "ours / run again"]
    rows = []
    for number in range(len(QUESTIONS)):
        milliseconds = {way: [1000 * turns[number][way]["first"] for turns in rounds] for way in WAYS}
        kept, again = (_ratio(milliseconds, way) for way in WAYS[1:])
        new = len(rounds[0][number][WAYS[0]]["input_ids"])
        cells = [spread(milliseconds[way]) for way in WAYS]
        rows.append([f"turn {number + 1}: first token, ms", str(new), *cells, kept, again])
    rates = {way: [turn[way]["rate"] for turns in rounds for turn in turns] for way in WAYS[:2]}
    cells = [spread(rates[way], 1) for way in WAYS[:2]]
    rows.append(["tokens per second after it", "", *cells, "", _ratio(rates, WAYS[1]), ""])
    pairs = [(turn[WAYS[0]]["answer"], turn[WAYS[1]]["answer"]) for turns in rounds for turn in turns]
    same = sum(ours == theirs for ours, theirs in pairs)
    return (
        f"{table(header, rows)}\n\n"
        f"Medians (least-greatest) of {options.rounds} conversations, {options.tokens} tokens an answer; the same "
        f"greedy tokens in {same} of {len(pairs)} answers. The picture's preparation is not counted."
    )


def _ratio(values: dict[str, list[float]], way: str) -> str:
    return f"{median(values[WAYS[0]]) / median(values[way]):.2f}"


def _verdict(rounds: list[list[Turn]]) -> None:
    first, second = (median(turns[number][WAYS[0]]["first"] for turns in rounds) for number in (0, 1))
    holds = second <= MOST_OF_TURN_1 * first
    print(
        f"\n{'OK' if holds else 'FAILED'}: the first token of turn 2 takes {second / first:.3f} of turn 1's "
        f"(at most {MOST_OF_TURN_1} wanted)"
    )
    sys.exit(not holds)


if __name__ == "__main__":
    main()
