"""Several training files with weights as one sequence of samples, and the order in which an epoch goes through it."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.data.records import RecordFile, Sample
from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.processing.template_choice import read_template
from paddle_llava.processing.templates import Template, named_template

KEYS = ("name", "data_files", "chat_template", "weight", "image_folder")
MAX_WEIGHT = 1000


@dataclass(frozen=True)
class Part:
    """Files that go together. An epoch takes each of their samples `weight` times.

    Of 2.5, each is taken twice, and another random half of them at each epoch once more.
    """

    files: tuple[RecordFile, ...]
    template: Template
    weight: float = 1.0

    def __len__(self) -> int:
        return sum(map(len, self.files))

    @property
    def epoch_samples(self) -> int:
        return max(1, round(self.weight * len(self)))


class Mixture:
    """The samples of all parts, each with the template it is told in: `len(mixture)`, `mixture[0]`.

    `files` are those of all parts, each with its template.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.files = [(file, part.template) for part in self.parts for file in part.files]
        self._ends = np.cumsum([len(file) for file, _ in self.files])

    @classmethod
    def from_entries(
        cls,
        entries: Any,
        template: Template,
        *,
        image_folder: str | Path | None = None,
        where: str = "dataset.train",
    ) -> Mixture:
        """From the list under `dataset.train` (or `.eval`) of a configuration:

            [{"name": "mix", "data_files": "data/*.json", "chat_template": "vicuna_v1", "weight": 2}]

        Only `data_files` is needed: a path, a pattern, or a list of these. `chat_template`, a template's name or file,
        defaults to `template`; `image_folder` to the one given, or else to the folder of each file. Raises
        `LlavaError` naming `where` and the entry.
        """
        if not isinstance(entries, list) or not entries:
            raise LlavaError(f'{where}: a list of entries like {{"data_files": "train.json"}} is expected')
        return cls([_part(entry, template, image_folder, f"{where}[{n}]") for n, entry in enumerate(entries)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Sample, Template]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._ends, index, side="right"))
        file, template = self.files[place]
        return file[index - int(self._ends[place]) + len(file)], template

    @property
    def epoch_samples(self) -> int:
        """How many samples an epoch takes."""
        return sum(part.epoch_samples for part in self.parts)

    @property
    def template(self) -> Template:
        """The one that most samples of an epoch are told in."""
        samples: Counter[Template] = Counter()
        for part in self.parts:
            samples[part.template] += part.epoch_samples
        return samples.most_common(1)[0][0]

    def epoch_order(self, seed: int, epoch: int, *, shuffle: bool = True) -> np.ndarray:
        """int64 [epoch_samples]: the samples of an epoch, the same for the same `seed` and `epoch`."""
        random = np.random.default_rng([seed, epoch])
        chosen, start = [], 0
        for part in self.parts:
            times, rest = divmod(part.epoch_samples, len(part))
            chosen += [start + np.arange(len(part))] * times
            chosen += [start + np.sort(random.permutation(len(part))[:rest])]
            start += len(part)
        order = np.concatenate(chosen)
        return random.permutation(order) if shuffle else order


def _part(entry: Any, template: Template, image_folder: str | Path | None, where: str) -> Part:
    if not isinstance(entry, dict):
        raise LlavaError(f"{where}: an object with data_files is expected, found {str(entry)[:40]!r}")
    for key in entry:
        if key not in KEYS:
            raise LlavaError(f"{where}: unknown key {str(key)[:40]!r}{did_you_mean(str(key), KEYS)}")
    for key in ("name", "chat_template", "image_folder"):
        if not isinstance(entry.get(key, ""), str):
            raise LlavaError(f"{where}.{key} must be text, found {str(entry[key])[:40]!r}")
    weight = entry.get("weight", 1)
    if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight <= MAX_WEIGHT:
        raise LlavaError(f"{where}.weight must be a number above 0, at most {MAX_WEIGHT}, found {str(weight)[:40]}")
    listed = entry.get("data_files")
    patterns = [pattern for pattern in (listed if isinstance(listed, list) else [listed]) if pattern]
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise LlavaError(f"{where}.data_files must be a path, a pattern or a list of these")
    folder = entry.get("image_folder", image_folder)
    paths = [path for pattern in patterns for path in matching_files(pattern, f"{where}.data_files")]
    files = tuple(RecordFile(path, image_folder=folder) for path in paths)
    name = entry.get("chat_template")
    return Part(files, template if name is None else _template(name, f"{where}.chat_template"), float(weight))


def matching_files(pattern: str, where: str) -> list[Path]:
    """The file `pattern`, or those it stands for, sorted; `~` is a home directory.

    Raises `LlavaError` beginning with `where` for none.
    """
    pattern = os.path.expanduser(pattern)
    if glob.has_magic(pattern) and not Path(pattern).exists():
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise LlavaError(f"{where}: no file matches {pattern!r}")
        return [Path(path) for path in found]
    return [Path(pattern)]


def _template(name: str, where: str) -> Template:
    if name.endswith(".json") or "/" in name:
        return read_template(Path(os.path.expanduser(name)))
    return named_template(name, where)
