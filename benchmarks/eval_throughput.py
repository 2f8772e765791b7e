"""How much faster an evaluation is in batches than question by question.

    python benchmarks/eval_throughput.py [--model-path FOLDER] [--batch-size 16] [--rounds 5]

The street world's questions, greedy, on the demonstration's model (or another), all in one process. The ways take
turns, round after round: in batches; one by one, each picture still encoded once for all questions about it; one by one
as evaluation scripts mostly do it, each picture again for each question. All must give the same answers. Exits with 1
when batches are less than twice as fast as the second way.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

from peers import Neighbours, machine, prepare, scratch_folder, spread, table

WANTED = 2.0
ALONE, AGAIN = "one by one", "one by one, pictures again"


def main() -> None:
    options = _options()
    prepare(options.threads)
    print(f"### Evaluation, batches of {options.batch_size}\n\n{machine(options.threads)}", flush=True)
    print(
        f"- load average at the start {os.getloadavg()[0]:.1f} (anything above 0.3 is other people's work)\n",
        flush=True,
    )
    neighbours = Neighbours()
    with scratch_folder(options.scratch) as scratch:
        os.environ["XDG_CACHE_HOME"] = str(scratch)
        seconds, same, questions = _measure(options, scratch)
    print(_report(seconds, same, questions, options))
    print(f"Meanwhile other programs took {neighbours.cores():.1f} of {os.cpu_count()} cores.")
    batches = f"batches of {options.batch_size}"
    ratio = median(alone / batch for alone, batch in zip(seconds[ALONE], seconds[batches], strict=True))
    holds = ratio >= WANTED and same
    print(f"\n{'OK' if holds else 'FAILED'}: {ratio:.2f} times as fast as {ALONE} (at least {WANTED} wanted)")
    sys.exit(not holds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, help="default: the demonstration's random model")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=12, help="about eight questions each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where pictures are drawn, and removed afterwards")
    return parser.parse_args()


def _measure(options: argparse.Namespace, scratch: Path) -> tuple[dict[str, list[float]], bool, int]:
    """Seconds of each way in each round, whether all answers were the same, and how many questions there are."""
    from paddle_llava.console import importing_paddle

    with importing_paddle():
        from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
    from paddle_llava.demo.checkpoint import build
    from paddle_llava.engines.paddle import PaddleEngine
    from paddle_llava.evaluation import answering
    from paddle_llava.evaluation.answering import Answerer
    from paddle_llava.evaluation.run import read_questions
    from paddle_llava.evaluation.tasks.files import Data

    folder = options.model_path
    if folder is None:
        folder = scratch / "demo"
        build(folder)
    engine = PaddleEngine(LlavaForConditionalGeneration.from_pretrained(folder))
    processor = LlavaProcessor.from_pretrained(folder)
    questions = read_questions("street", Data((Path(str(options.pictures)),)))
    ways: dict[str, tuple[int, int]] = {  # batch size, and bytes of features to keep
        f"batches of {options.batch_size}": (options.batch_size, answering.HELD_FEATURES),
        ALONE: (1, answering.HELD_FEATURES),
        AGAIN: (1, 0),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: list[dict[str, str]] = []
    for number in range(options.rounds + 1):
        for way, (batch_size, held) in ways.items():
            answering.HELD_FEATURES = held
            answerer = Answerer(engine, processor, batch_size=batch_size)
            start = time.perf_counter()
            said = [it for batch in answerer.answer(questions) for it in batch]
            if number:  # the first round warms up
                seconds[way].append(time.perf_counter() - start)
            found.append({it.id: it.answer for it in said})
    return seconds, all(answers == found[0] for answers in found), len(questions)


def _report(seconds: dict[str, list[float]], same: bool, questions: int, options: argparse.Namespace) -> str:
    first = next(iter(seconds))
    rows = []
    for way, values in seconds.items():
        ratios = [other / batch for other, batch in zip(values, seconds[first], strict=True)]
        rows.append([way, spread(values, 2), f"{questions / median(values):.1f}", spread(ratios, 2)])
    return (
        f"{table(['', 'seconds', 'questions per second', 'slower than in batches'], rows)}\n\n"
        f"Medians (least-greatest) of {options.rounds} rounds, {questions} questions about {options.pictures} "
        f"pictures; {'the same answers in all' if same else 'THE ANSWERS DIFFER'}."
    )


if __name__ == "__main__":
    main()
