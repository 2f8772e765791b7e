"""`llava data check`: every record of training files tried out before a training is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console

from paddle_llava.console import CONTROLS, note, progress_bar
from paddle_llava.data.encoding import EncodedSample, encode_sample
from paddle_llava.data.pictures import local_source
from paddle_llava.data.pool import runner
from paddle_llava.data.records import ADDRESS, FileChanged, RecordFile, Sample
from paddle_llava.data.report import Problem, Report
from paddle_llava.data.show import decoded_pieces, print_sample
from paddle_llava.errors import LlavaError
from paddle_llava.processing.loading import load_image
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import Template

Told = tuple[RecordFile, Template]
"""A file and the template that it is told in."""
RECORDS_PER_TASK = 32
AHEAD_PER_WORKER = 4


class _Found(NamedTuple):
    """Of some records: for each good one a row of `counts`, int64 [good, 6], and for each bad one a problem."""

    counts: np.ndarray
    problems: list[Problem]


@dataclass(frozen=True)
class Checker:
    """Tries out records as training would use them. Every picture is decoded."""

    files: Sequence[Told]
    processor: LlavaProcessor
    max_length: int

    def check(self, number: int, start: int, end: int) -> _Found:
        """Records `start` to `end` of file `number`."""
        results = [self._check(*self.files[number], index) for index in range(start, end)]
        counts = [result for result in results if not isinstance(result, Problem)]
        problems = [result for result in results if isinstance(result, Problem)]
        return _Found(np.array(counts, np.int64).reshape(-1, 6), problems)

    def _check(self, file: RecordFile, template: Template, index: int) -> tuple[int, ...] | Problem:
        """(full length, whether it is cut, tokens, of them for pictures, of them targets, pictures) of a record."""
        kind: Literal["record", "image"] = "record"
        try:
            sample = file[index]
            kind = "image"
            for source in sample.images:
                load_image(local_source(source))
            kind = "record"
            encoded = self.encode(sample, template)
        except FileChanged:  # no other record would be where it was
            raise
        except LlavaError as error:
            return Problem(str(file.path), index + 1, kind, str(error).removeprefix(f"{file.name(index)}: "))
        features = sum(encoded.feature_counts)
        pictures = len(sample.images)
        return encoded.full_length, encoded.truncated, len(encoded), features, encoded.num_targets, pictures

    def encode(self, sample: Sample, template: Template) -> EncodedSample:
        return encode_sample(sample, self.processor, template, self.max_length)


def check(
    files: Sequence[Told],
    processor: LlavaProcessor,
    max_length: int,
    *,
    workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Try out every record of `files`, in `workers` processes (0: in this one).

    `progress` is told how many of how many records are done. Raises `LlavaError` when a worker dies, and `FileChanged`
    when a file is written to meanwhile; what is wrong with a record stands in the report.
    """
    checker = Checker(files, processor, max_length)
    report = Report([str(file.path) for file, _ in files], max_length, records=sum(len(file) for file, _ in files))
    tasks = [
        (number, start, min(start + RECORDS_PER_TASK, len(file)))
        for number, (file, _) in enumerate(files)
        for start in range(0, len(file), RECORDS_PER_TASK)
    ]
    counts, done = [np.empty((0, 6), np.int64)], 0
    with runner(checker, workers) as run:
        for (_, start, end), found in zip(tasks, run("check", tasks, AHEAD_PER_WORKER * workers), strict=True):
            counts.append(found.counts)
            report.problems += found.problems
            done += end - start
            if progress is not None:
                progress(done, report.records)
    all_counts = np.concatenate(counts)
    report.lengths = all_counts[:, 0]
    _, *sums = all_counts.sum(axis=0).tolist()
    report.truncated, report.tokens, report.image_tokens, report.target_tokens, report.images = sums
    return report


def write_good(files: Sequence[Told], report: Report, out: str | Path) -> int:
    """Write the records without a problem to the file `out`, each with its very bytes; gives their number.

    It becomes JSONL where all `files` are, else a JSON list, and appears whole or not at all. Raises `LlavaError` when
    it cannot be written or is one of `files`.
    """
    out = Path(out)
    if any(out.exists() and out.samefile(file.path) for file, _ in files):
        raise LlavaError(f"{out}: the file that is checked; give another name")
    start, between, end = (b"", b"\n", b"\n") if all(file.is_jsonl for file, _ in files) else (b"[\n", b",\n", b"\n]\n")
    number, part = 0, out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(start)
            for number, (file, _, index) in enumerate(_good(files, report), 1):
                stream.write((between if number > 1 else b"") + file.raw(index))
            stream.write(end)
        os.replace(part, out)
    except OSError as error:
        raise LlavaError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        part.unlink(missing_ok=True)
    return number


def _good(files: Sequence[Told], report: Report) -> Iterator[tuple[RecordFile, Template, int]]:
    bad = {(problem.file, problem.record) for problem in report.problems}
    return ((file, told, i) for file, told in files for i in range(len(file)) if (str(file.path), i + 1) not in bad)


def _lost_folders(files: Sequence[Told], report: Report, out: str | Path) -> list[str]:
    """Where paths of pictures begin that the good records, now in the file `out`, do not find by themselves."""
    folders: list[str] = []
    for (file, _, index), moved in zip(_good(files, report), RecordFile(out), strict=True):
        folder = str(file.image_folder)
        if folder not in folders and _absolute(file[index]) != _absolute(moved):
            folders.append(folder)
    return folders


def _absolute(sample: Sample) -> list[str]:
    return [source if ADDRESS.match(source) else os.path.abspath(source) for source in sample.images]


def run_check(
    files: Sequence[Told],
    processor: LlavaProcessor,
    max_length: int,
    *,
    workers: int = 0,
    show: int = 0,
    fix: str | Path | None = None,
    as_json: bool = False,
) -> int:
    """The command: check, with a bar on a terminal's stderr, and print the report on stdout, as JSON if asked.

    First come `show` good samples, their targets marked. The good records go to the file `fix`. Gives the exit code, 1
    when any record is bad.
    """
    with progress_bar("Checking") as progress:
        report = check(files, processor, max_length, workers=workers, progress=progress)
    checker = Checker(files, processor, max_length)
    shown = [checker.encode(file[index], template) for file, template, index in islice(_good(files, report), show)]
    if as_json:
        samples = [{"record": s.name, "pieces": [p._asdict() for p in decoded_pieces(s, processor)]} for s in shown]
        print(json.dumps(report.to_dict() | ({"samples": samples} if show else {}), ensure_ascii=False, indent=2))
    else:
        console = Console(file=sys.stdout, highlight=False)
        for sample in shown:
            print_sample(sample, processor, console)
        for line in report.lines():
            print(CONTROLS.sub("?", line))
    if fix is not None:
        number = write_good(files, report, fix)
        note(f"{number:,} good records written to {fix}")
        if number and (folders := _lost_folders(files, report, fix)):
            note(f"relative paths of its pictures begin in {', '.join(folders)}: give that as image_folder")
    return int(bool(report.problems))
