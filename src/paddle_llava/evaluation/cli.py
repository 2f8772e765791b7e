"""`llava eval TASK`, `llava eval merge` and `llava eval compare`; what they run is imported when they are called."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paddle_llava.evaluation.tasks import ALIASES, TASKS
from paddle_llava.flags import AsJson, ConvMode, Debug, Device, Dtype, EngineName, LoraPath, ModelPath, WeightFormat

if TYPE_CHECKING:
    from paddle_llava.evaluation.records import Prediction

eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model on a benchmark.")

OutputDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="For results; default: eval/TASK/MODEL.")]
MergedDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="For results; default: where the shards are.")]


def evaluate(
    context: typer.Context,
    model_path: ModelPath = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="The benchmark's own file, or a folder of them; may be repeated."),
    ] = None,
    image_folder: Annotated[Path | None, typer.Option(help="Where pictures are; default: beside the data.")] = None,
    output_dir: OutputDir = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions asked at a time; answers do not depend on it.")
    ] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many questions, the first.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Ask only every N-th question, from the I-th.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest answer; default: the benchmark's.")
    ] = None,
    conv_mode: ConvMode = None,
    lora_path: LoraPath = None,
    engine: EngineName = "auto",
    weights: WeightFormat = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Ask and score. A run that was stopped goes on where it was."""
    from dataclasses import replace

    from paddle_llava.chat import open_session
    from paddle_llava.console import importing_paddle, note, progress_bar
    from paddle_llava.errors import LlavaError
    from paddle_llava.generation.sampling import SamplingParams
    from paddle_llava.pretrained import find_pretrained, state_of

    named = context.command.name or ""
    task = ALIASES.get(named, named)
    if model_path is None:
        raise LlavaError("--model-path is missing: give a name such as llava-hf/llava-1.5-7b-hf, or a folder")
    place = _shard(shard)
    with importing_paddle():
        from paddle_llava.evaluation.answering import Answerer
        from paddle_llava.evaluation.predictions import PredictionLog, Run
        from paddle_llava.evaluation.run import PREDICTIONS, ask, finish, in_its_frame, read_questions
        from paddle_llava.evaluation.tasks.files import Data

    paths = tuple(Path(path).expanduser() for path in data or ())
    questions = read_questions(task, Data(paths, image_folder), limit=limit, shard=place)
    if max_new_tokens is not None:
        questions = [replace(question, max_new_tokens=max_new_tokens) for question in questions]
    session = open_session(
        model_path,
        SamplingParams(),
        conv_mode=conv_mode,
        engine=engine,
        weights=weights,
        dtype=dtype,
        device=device,
        lora_path=lora_path,
    )
    questions = in_its_frame(questions, session.processor.image_processor)
    settings = {
        "data": [str(path) for path in paths],
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "template": session.template.name,
        "dtype": session.engine.config.dtype,
        "lora_path": lora_path,
    }
    checkpoint = state_of(find_pretrained(model_path).files(lora_path))
    run = Run(task, model_path, len(questions), settings, place, checkpoint)
    folder = output_dir or Path("eval", task, os.path.basename(os.path.abspath(model_path)))
    name = PREDICTIONS if shard is None else f"predictions-{place[0]}-of-{place[1]}.jsonl"
    answerer = Answerer(session.engine, session.processor, batch_size=batch_size, template=session.template)
    with PredictionLog(folder / name, run) as log, progress_bar(TASKS[task].title) as progress:
        try:
            predictions = ask(answerer, questions, log, progress)
        except KeyboardInterrupt:
            note(f"{len(log.done):,} of {len(questions):,} answers are kept: the same command goes on from there")
            raise
    _complain_of_failed(predictions)
    if shard is not None:
        note(f"shard {shard} is in {folder / name}; with all of them there: llava eval merge {folder}")
        return
    finish(run, predictions, folder)
    _tell(folder, as_json)


for _name, _entry in TASKS.items():
    eval_app.command(_name, help=f"{_entry.title}: --data {_entry.data}.", short_help=_entry.title)(evaluate)
for _name, _task in ALIASES.items():
    eval_app.command(_name, help=f"Another name of {_task}.", short_help=f"The same as {_task}")(evaluate)


def _shard(text: str | None) -> tuple[int, int]:
    from paddle_llava.errors import LlavaError

    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", "1/1" if text is None else text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise LlavaError(f"--shard {(text or '')[:40]}: I/N is expected, with I from 1 to N, such as 2/8")
    return number, of


def _complain_of_failed(predictions: list[Prediction]) -> None:
    from paddle_llava.console import note

    failed = [prediction for prediction in predictions if prediction.error]
    for prediction in failed[:5]:
        note(f"question {prediction.id} failed: {prediction.error}")
    if failed:
        note(f"{len(failed)} of {len(predictions)} questions failed and count as wrong; run again to ask them again")


@eval_app.command("merge")
def merge(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FOLDER|FILE...", help="The shards' predictions, or the folder of them.")
    ],
    output_dir: MergedDir = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score the shards of one run together."""
    from paddle_llava.console import importing_paddle
    from paddle_llava.errors import LlavaError

    with importing_paddle():
        from paddle_llava.evaluation.predictions import merge_predictions, write_predictions
        from paddle_llava.evaluation.run import PREDICTIONS, finish

    paths = [path for source in sources for path in (sorted(source.glob("predictions-*-of-*.jsonl")) or [source])]
    if paths[0].is_dir():
        raise LlavaError(f"{paths[0]}: no predictions-1-of-N.jsonl and so on are there, as llava eval --shard writes")
    run, predictions = merge_predictions(paths)
    folder = output_dir or paths[0].parent
    write_predictions(folder / PREDICTIONS, run, predictions)
    _complain_of_failed(predictions)
    finish(run, predictions, folder)
    _tell(folder, as_json)


@eval_app.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="results.json or predictions.jsonl, or the folder of it.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another model's, of the same task.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Show which answers changed from one model to another, and whether that can be chance."""
    from paddle_llava.console import importing_paddle

    with importing_paddle():
        from paddle_llava.evaluation.compare import run_compare
    return run_compare(a, b, as_json=as_json)


def _tell(folder: Path, as_json: bool) -> None:
    """Print what `results.json` says."""
    from paddle_llava.evaluation.run import REPORT, RESULTS

    text = (folder / RESULTS).read_text(encoding="utf-8")
    if as_json:
        print(text, end="")
        return
    import json

    from paddle_llava.console import note

    result = json.loads(text)
    print(f"{TASKS[result['task']].title}, {result['model']}: {result['questions']:,} questions")
    digits = 2 if any(value > 1 for value in result["figures"].values()) else 4  # percent, or shares of 1
    for name, value in result["figures"].items():
        interval = " to ".join(f"{bound:.{digits}f}" for bound in result["intervals"].get(name, ()))
        print(f"  {name:20} {value:9.{digits}f}{f'  95% interval {interval}' if interval else ''}")
    if published := result["published"]:
        print(f"  {'published':20} {published['value']:9.2f}  {published['model']} {published['remark']}".rstrip())
    for line in result["notes"]:
        print(f"  {line}")
    note(f"{folder / RESULTS} and {folder / REPORT} are written")
