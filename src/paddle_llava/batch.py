"""`llava chat --batch`: questions from a file, answered many at a time, into a file of the same order.

Answers are kept in `OUT.part` as they come, so that a run that was stopped goes on where it was. When all are there,
they are put in the order of the questions, and into `OUT` at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llava.console import note, progress_bar
from paddle_llava.data.forms import Contents, read_question
from paddle_llava.data.pictures import picture_size
from paddle_llava.data.records import RecordFile
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.answering import Answerer
from paddle_llava.evaluation.predictions import ESCAPED, drop_unfinished_line
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.processing.boxes import find_boxes

if TYPE_CHECKING:
    from paddle_llava.generation.session import ChatSession
    from paddle_llava.processing.processor import LlavaProcessor

WINDOW = 1024
"""Questions that are read ahead and put in the order that is quickest."""

Entry = dict[str, Any]


class Batch:
    """The questions of `source`, and what is answered of them in `out`.

    `prompt` is the question of records that have none. Raises `LlavaError` when `source` is no list of records, or
    `out` was written by something else or with another model.
    """

    def __init__(self, source: Path, out: Path, model: str, *, prompt: str | None = None) -> None:
        self.out, self.model = out, model
        self.part = out.with_name(out.name + ".part")
        self.records = RecordFile(source, read=lambda record: _read(record, prompt))
        self.lines: dict[int, str] = {}  # of `out`, by the record's number
        self.failed: set[int] = set()
        for path in (out, self.part):
            if path.is_file():
                self._take_up(path)

    def _take_up(self, path: Path) -> None:
        """What an earlier run has answered."""
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:  # the last may be unfinished
            try:
                entry = json.loads(line)
                number, model, answered = entry["record"], entry["model"], "error" not in entry
            except (ValueError, TypeError, KeyError, RecursionError):
                raise LlavaError(f"{path}: not written by llava chat --batch; give another --out") from None
            if model != self.model:
                raise LlavaError(f"{path}: it holds answers of {model!r}; give another --out, or remove the file")
            if answered and (entry.get("digest"), entry.get("prompt")) != (self._digest(number), self._prompt(number)):
                raise LlavaError(f"{path}: record {number} was another one then; remove the file to start anew")
            self._keep(entry, line)

    def _prompt(self, number: int) -> str | None:
        with suppress(LlavaError, IndexError):
            return self._question(number, 1).prompt
        return None

    def _digest(self, number: int) -> str | None:
        """Of a record as it stands in the file, whose pictures or earlier turns may differ under the same prompt."""
        with suppress(IndexError):
            return hashlib.sha256(self.records.raw(number - 1)).hexdigest()[:16]
        return None

    def _keep(self, entry: Entry, line: str) -> None:
        self.lines[entry["record"]] = line
        (self.failed.add if "error" in entry else self.failed.discard)(entry["record"])

    def answer(self, answerer: Answerer, progress: Callable[[int, int], object] | None = None) -> None:
        """Answer what is left, and what failed before. `progress` is told how many of how many are done.

        A record that cannot be asked gets a line with its `error`, and costs the others nothing.
        """
        left = [
            number for number in range(1, len(self.records) + 1) if number not in self.lines or number in self.failed
        ]
        done = len(self.records) - len(left)
        if done:
            note(f"{done:,} of {len(self.records):,} records are answered already")
        if self.part.is_file():
            drop_unfinished_line(self.part)
        with self.part.open("a", encoding="utf-8", errors=ESCAPED) as file:
            for start in range(0, len(left), WINDOW):
                for entries in self._answers(answerer, left[start : start + WINDOW]):
                    for entry in entries:
                        line = json.dumps(entry, ensure_ascii=False)
                        file.write(line + "\n")
                        self._keep(entry, line)
                    file.flush()
                    done += len(entries)
                    if progress:
                        progress(done, len(self.records))
        self._put_in_order()

    def _answers(self, answerer: Answerer, numbers: Sequence[int]) -> Iterator[list[Entry]]:
        questions, failed = [], []
        for number in numbers:
            try:
                questions.append(self._question(number, answerer.params.max_new_tokens))
            except LlavaError as error:
                name = self.records.name(number - 1)
                failed.append(self._entry(number, {"error": str(error).removeprefix(f"{name}: ")}))
        yield failed
        for predictions in answerer.answer(questions):
            yield [self._entry(int(it.id), _answered(it, answerer.processor)) for it in predictions]

    def _question(self, number: int, max_new_tokens: int) -> Question:
        sample = self.records[number - 1]
        parts = sample.messages[-1].text
        prompt = parts if isinstance(parts, str) else "".join(part for part in parts if isinstance(part, str)).strip()
        return Question(
            id=str(number),
            prompt=prompt,
            images=sample.images,
            max_new_tokens=max_new_tokens,
            system=sample.system,
            messages=sample.messages,
        )

    def _entry(self, number: int, said: Entry) -> Entry:
        """A line of the file; an `id` that the record has goes along."""
        head: Entry = {"record": number}
        with suppress(ValueError, RecursionError):
            own = json.loads(self.records.raw(number - 1))
            if isinstance(own, dict) and isinstance(own.get("id"), (str, int)):
                head["id"] = own["id"]
        return {**head, "digest": self._digest(number), "model": self.model, **said}

    def _put_in_order(self) -> None:
        whole = self.out.with_name(self.out.name + ".tmp")
        with whole.open("w", encoding="utf-8", errors=ESCAPED) as file:
            file.writelines(self.lines[number] + "\n" for number in sorted(self.lines))
        os.replace(whole, self.out)
        self.part.unlink(missing_ok=True)


def _read(record: Any, prompt: str | None) -> Contents:
    if isinstance(record, dict) and not record.keys() & {"prompt", "messages", "conversations"}:
        if prompt is None:
            raise LlavaError('there is no question: give the record a "prompt", or one to all such with --prompt')
        record = {**record, "prompt": prompt}
    return read_question(record)


def _answered(prediction: Prediction, processor: LlavaProcessor) -> Entry:
    """With the answer's boxes, in pixels of the picture that was shown last."""
    question = prediction.question
    if prediction.error:
        return {"prompt": question.prompt, "error": prediction.error}
    entry: Entry = {"prompt": question.prompt, "answer": prediction.answer}
    if question.images and find_boxes(prediction.answer):
        height, width = picture_size(question.images[-1])
        boxes = processor.answer_boxes(prediction.answer, width, height)
        entry["boxes"] = [[round(value, 1) for value in box] for box in boxes]
    return entry


def open_batch(source: Path | None, out: Path | None, model: str, prompts: Sequence[str]) -> Batch:
    """The batch of the flags --batch, --out and --prompt. Raises `LlavaError`."""
    if source is None or out is None:
        raise LlavaError("--batch IN.jsonl and --out OUT.jsonl go together: questions, and where their answers go")
    if len(prompts) > 1:
        raise LlavaError("--prompt: one question at most for a batch; write several turns into its records")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise LlavaError(f"--out {out}: must be the name of a file in a folder that exists")
    return Batch(source, out, model, prompt=prompts[0] if prompts else None)


def run_batch(batch: Batch, session: ChatSession, batch_size: int) -> int:
    """Answer as `session` would, `batch_size` records at a time, and tell; returns 2 when any record failed, else 0."""
    answerer = Answerer(
        session.engine, session.processor, batch_size=batch_size, template=session.template, params=session.params
    )
    try:
        with progress_bar("answering") as progress:
            batch.answer(answerer, progress)
    except KeyboardInterrupt:
        note(f"stopped; what was answered is in {batch.part}, and the same command goes on from there")
        raise
    for number in sorted(batch.failed)[:5]:
        note(f"record {number} failed: {json.loads(batch.lines[number])['error']}")
    failed = f", {len(batch.failed):,} of them failed: run again to ask them again" if batch.failed else ""
    note(f"{batch.out} holds {len(batch.lines):,} records{failed}")
    return 2 if batch.failed else 0
