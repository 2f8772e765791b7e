"""`predictions.jsonl`: what was asked and answered, one line a question, written while a run goes on.

The first line tells of the run itself; each later one holds a question whole and its answer. A run that was killed may
leave a last line unfinished, which is dropped. A question that failed may be asked again: its last line counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.records import Prediction, Question

ESCAPED = "backslashreplace"  # of half a surrogate pair this makes the escape that JSON itself has for it


@dataclass(frozen=True)
class Run:
    """What a run's answers depend on, and how many there will be.

    `settings` are those that can change an answer (template, dtype, ...); `shard` is (i, n), 1 to n, of all questions.
    `checkpoint` is the `pretrained.state_of` the model's files. Shards may differ in it: each machine has its own copy.
    """

    task: str
    model: str
    questions: int
    settings: dict[str, Any] = field(default_factory=dict)
    shard: tuple[int, int] = (1, 1)
    checkpoint: str = ""


class PredictionLog:
    """A run's file, open for more answers; `done` are those that it holds already, by id.

    With a file at `path` the run goes on where it stopped. Raises `LlavaError` when the file is of another run.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.done = path, dict[str, Prediction]()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size:
            drop_unfinished_line(path)
        if path.is_file() and path.stat().st_size:
            before, predictions = read_predictions(path)
            if before != run:
                raise LlavaError(f"{path}: {_difference(before, run)}; give another --output-dir, or remove the file")
            self.done = {prediction.id: prediction for prediction in predictions}
            self._file = path.open("a", encoding="utf-8", errors=ESCAPED)
        else:
            self._file = path.open("w", encoding="utf-8", errors=ESCAPED)
            self._write([{"run": asdict(run)}])

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Add answers; they are in the file, whatever happens to this process, when this returns."""
        predictions = list(predictions)
        self._write([_to_json(prediction) for prediction in predictions])
        self.done |= {prediction.id: prediction for prediction in predictions}

    def _write(self, values: Sequence[dict[str, Any]]) -> None:
        self._file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        self._file.flush()

    def __enter__(self) -> PredictionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_predictions(path: Path) -> tuple[Run, list[Prediction]]:
    """The run of a file and its answers, one a question. Raises `LlavaError` naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise LlavaError(f"{path}: not in UTF-8") from None
    run: Run | None = None
    predictions: dict[str, Prediction] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if run is None:
                run = Run(**{**value["run"], "shard": tuple(value["run"]["shard"])})
            else:
                prediction = _from_json(value)
                predictions[prediction.id] = prediction
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise LlavaError(
                f"{path}: line {number}: not a line that `llava eval` writes; remove it, or the file"
            ) from None
    if run is None:
        raise LlavaError(f"{path}: empty; a file that `llava eval` wrote is expected")
    return run, list(predictions.values())


def merge_predictions(paths: Sequence[Path]) -> tuple[Run, list[Prediction]]:
    """All shards of one run as one. Raises `LlavaError` for a missing, doubled or foreign shard."""
    parts = [(path, *read_predictions(path)) for path in paths]
    (first_path, first, _), *_ = parts
    held: dict[int, Path] = {}
    for path, run, predictions in parts:
        number, of = run.shard
        whole = Run(run.task, run.model, 0, run.settings, (1, of))
        if whole != Run(first.task, first.model, 0, first.settings, (1, first.shard[1])):
            raise LlavaError(f"{path}: not a shard of the run in {first_path}: {_difference(first, run)}")
        if number in held:
            raise LlavaError(f"{path}: shard {number}/{of} is in {held[number]} already")
        if len(predictions) < run.questions:
            raise LlavaError(f"{path}: {len(predictions)} of {run.questions} questions are answered; run it to its end")
        held[number] = path
    missing = sorted(set(range(1, first.shard[1] + 1)) - set(held))
    if missing:
        raise LlavaError(f"shard {missing[0]}/{first.shard[1]} is missing among the {len(paths)} files")
    predictions = [prediction for _, _, some in parts for prediction in some]
    if len({prediction.id for prediction in predictions}) < len(predictions):
        raise LlavaError(f"{first_path}: the shards hold some question twice; were they cut from the same --data?")
    return replace(first, questions=len(predictions), shard=(1, 1)), predictions


def write_predictions(path: Path, run: Run, predictions: Iterable[Prediction]) -> None:
    """A whole file at once."""
    path.unlink(missing_ok=True)
    with PredictionLog(path, run) as log:
        log.write(predictions)


def _to_json(prediction: Prediction) -> dict[str, Any]:
    """A flat record, without what is empty."""
    values = {"answer": prediction.answer, "error": prediction.error}
    record = {**asdict(prediction.question), **values}
    return {
        key: value for key, value in record.items() if key in ("id", "prompt", "answer") or value not in ((), {}, None)
    }


def _from_json(record: dict[str, Any]) -> Prediction:
    own = {key: value for key, value in record.items() if key not in ("answer", "error")}
    for key in ("images", "references"):
        own[key] = tuple(own.get(key, ()))
    own["history"] = tuple((asked, said) for asked, said in own.get("history", ()))
    question = Question(**own)
    if not isinstance(question.id, str) or not isinstance(record["answer"], str):
        raise TypeError("id and answer must be text")
    return Prediction(question, record["answer"], record.get("error"))


def _difference(one: Run, other: Run) -> str:
    """What sets the run that is there apart from the one that is asked for."""
    for name in (entry.name for entry in fields(Run)):
        there, asked = getattr(one, name), getattr(other, name)
        if name == "settings" and there != asked:
            name = next(key for key in {**there, **asked} if there.get(key) != asked.get(key))
            there, asked = there.get(name), asked.get(name)
        if name == "checkpoint" and there != asked:
            return "it holds answers of the model as it was before its files changed"
        if there != asked:
            return f"it holds a run with {name} {str(there)[:80]!r}, not {str(asked)[:80]!r}"
    return "it holds another run"


def drop_unfinished_line(path: Path) -> None:
    """Cut off what a process that was killed has left of a last line."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
