"""Everything that makes a street model, in one call: eye, tongue, `llava pretrain`, both together, `llava finetune`.

Each stage has a folder of its own in the output folder and goes on from where it stopped; a finished one is not
repeated. Two of them are the recipe that trains LLaVA itself, from the files in `config/`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import paddle

from paddle_llava.console import progress_bar
from paddle_llava.demo.alignment import join
from paddle_llava.demo.children import Telling, follow, half_the_threads
from paddle_llava.demo.curves import write_curves
from paddle_llava.demo.dataset import write_dataset
from paddle_llava.demo.evaluate import ask_all, figures, lines
from paddle_llava.demo.eye import train_eye
from paddle_llava.demo.loop import Say
from paddle_llava.demo.model import write_untrained
from paddle_llava.demo.together import learn_together
from paddle_llava.demo.tongue import train_tongue
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json, write_json
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.training.start import Stage, start

CONFIGS = Path(__file__).parent / "config"
OWN, TAUGHT, DATA, AMOUNT = "own", "taught", "data", "amount.json"


@dataclass(frozen=True)
class Amount:
    """Steps of eye, tongue and projector; steps and rounds of all together; pictures drawn for the recipe and epochs
    through them; pictures judged."""

    eye_steps: int
    tongue_steps: int
    alignment_steps: int
    together_steps: int
    rounds: int
    pictures: int
    pretrain_share: float
    finetune_epochs: float
    judged: int


FULL = Amount(
    eye_steps=9200,
    tongue_steps=5200,
    alignment_steps=3500,
    together_steps=2000,
    rounds=2,
    pictures=8000,
    pretrain_share=0.35,
    finetune_epochs=0.5,
    judged=1000,
)
QUICK = Amount(
    eye_steps=900,
    tongue_steps=540,
    alignment_steps=200,
    together_steps=30,
    rounds=1,
    pictures=1500,
    pretrain_share=0.3,
    finetune_epochs=0.4,
    judged=60,
)
EYE: Any = {"batch_size": 16, "learning_rate": 1e-3}
TONGUE: Any = {"batch_size": 8, "learning_rate": 1e-3}
ALIGNMENT: Any = {"batch_size": 16, "learning_rate": 2e-3}
TOGETHER: Any = {"asked": 8, "watched": 24, "learning_rate": 7e-4}


def train(output_dir: Path, quick: bool = False, say: Say = print, amount: Amount | None = None) -> Path:
    """Train the street model in `output_dir`; the folder of the result, with `figures.json`. Raises `LlavaError`.

    `curves.svg` of all stages lies beside it. Run again after a stop, it goes on. `quick` takes a quarter of an hour on
    two cores and gives a poorer model.
    """
    amount = amount or (QUICK if quick else FULL)
    output_dir.mkdir(parents=True, exist_ok=True)
    check_amount(output_dir / AMOUNT, amount)
    own, data = output_dir / OWN, output_dir / DATA
    if not (own / "config.json").is_file():
        say("eye and tongue learn, each by itself, on half of the processor")
        learn_apart(output_dir, amount, say)
        say("the projector learns to tell the tongue what the eye sees")
        eye, tongue, base, folder = (output_dir / name for name in ("eye", "tongue", "base", "alignment"))
        with progress_bar("alignment") as bar:
            joined = join(
                eye, tongue, base, folder, own, steps=amount.alignment_steps, say=say, progress=bar, **ALIGNMENT
            )
        if not joined:
            raise LlavaError(f"{output_dir}: the alignment stopped before the end; run the command again")
    say(f"{amount.pictures:,} pictures for the recipe")
    with progress_bar("drawing") as bar:
        write_dataset(data, amount.pictures, progress=bar)
    taught = stage(output_dir, "pretrain", own, amount.pretrain_share, say)
    for number in range(1, amount.rounds + 1):
        before, taught = taught, output_dir / f"{TAUGHT}-{number}"
        if not (taught / "config.json").is_file():
            say(f"eye, projector and tongue learn together, in two processes, round {number} of {amount.rounds}")
            learn_on(output_dir, before, taught, number, amount, say)
    result = stage(output_dir, "finetune", taught, amount.finetune_epochs, say)
    say(f"curves: {write_curves(output_dir)}")
    judge(result, amount.judged, say)
    return result


def check_amount(path: Path, amount: Amount) -> None:
    """Raise `LlavaError` where the training of which `path` tells is another one than that of `amount`."""
    if not path.is_file():
        write_json(path, asdict(amount))
    elif (was := read_json(path)) != asdict(amount):
        kind = "quick" if was == asdict(QUICK) else "full" if was == asdict(FULL) else "other"
        raise LlavaError(f"{path.parent}: holds a {kind} training, which this is not; give another --output-dir")


def learn_apart(output_dir: Path, amount: Amount, say: Say) -> None:
    """Eye and tongue in two processes. Raises `LlavaError` when one of them fails or is stopped."""
    base = output_dir / "base"
    if not (base / "config.json").is_file():
        write_untrained(base)
    context = get_context("spawn")
    children, pipes = [], []
    with half_the_threads():
        for part in ("eye", "tongue"):
            pipe, its_pipe = context.Pipe(duplex=False)
            child = context.Process(target=_learn, args=(part, output_dir, amount, Telling(part, its_pipe)), name=part)
            child.start()
            its_pipe.close()
            children.append(child)
            pipes.append(pipe)
    follow(children, pipes, say)


def learn_on(output_dir: Path, start: Path, result: Path, number: int, amount: Amount, say: Say) -> None:
    """All parts together in two processes, from the checkpoint `start`, in round `number`, which has a learning rate
    that falls to nothing and pictures of its own. Raises `LlavaError` when one fails or is stopped."""
    folder = output_dir / f"together-{number}"
    pipe, their_pipe = get_context("spawn").Pipe(duplex=False)
    telling = Telling("together", their_pipe)
    with half_the_threads():
        run = paddle.distributed.spawn(
            _learn_on, (folder, start, result, number, amount, telling), nprocs=2, join=False, backend="gloo"
        )
    their_pipe.close()
    for child in run.processes:
        child.name = "together"
    follow(run.processes, [pipe], say)


def _learn(part: str, output_dir: Path, amount: Amount, telling: Telling) -> None:
    """In a child process: one of the two."""
    folder, base = output_dir / part, output_dir / "base"
    told: Any = {"say": telling.say, "progress": telling.progress}
    if part == "eye":
        learnt = train_eye(folder, base, steps=amount.eye_steps, **EYE, **told)
    else:
        learnt = train_tongue(folder, base, steps=amount.tongue_steps, **TONGUE, **told)
    if learnt is None:
        raise SystemExit(1)


def _learn_on(folder: Path, start: Path, result: Path, number: int, amount: Amount, telling: Telling) -> None:
    """In each of the processes that learn together; the first one tells of it."""
    speaks = paddle.distributed.get_rank() == 0
    told: Any = {"say": telling.say, "progress": telling.progress} if speaks else {"say": lambda line: None}
    if not learn_together(folder, start, result, seed=number, steps=amount.together_steps, **TOGETHER, **told):
        raise SystemExit(1)


def stage(output_dir: Path, name: Stage, model: Path, epochs: float, say: Say) -> Path:
    """One of the recipe's two stages, as its configuration file says, unless it is done."""
    folder = output_dir / name
    if (folder / "config.json").is_file():
        return folder
    path = CONFIGS / f"{name}.json"
    entries = json.loads(path.read_text())["dataset"]
    for entry in entries["train"]:
        entry["data_files"] = str(output_dir / entry["data_files"])
    overrides = {
        "model_name_or_path": str(model),
        "output_dir": str(folder),
        "dataset": json.dumps(entries),
        "num_train_epochs": str(epochs),
    }
    start(path, name, overrides, say)
    if not (folder / "config.json").is_file():
        raise LlavaError(f"{folder}: stopped before the end; run the command again")
    return folder


def judge(folder: Path, pictures: int, say: Say) -> None:
    """Ask about held-out pictures; the figures are printed and written to `figures.json`."""
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    with progress_bar("asking") as bar:
        table = figures(ask_all(model, processor, pictures, progress=bar))
    write_json(folder / "figures.json", table)
    for line in lines(table):
        say(line)
