"""Parameters that stand in several folders, none of which is a checkpoint by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from paddle_llava.checkpoints import names as naming
from paddle_llava.checkpoints.dtypes import FLOATS
from paddle_llava.checkpoints.folder import TensorFile, some
from paddle_llava.checkpoints.write import TensorSource
from paddle_llava.config import Layout
from paddle_llava.errors import LlavaError

Shape = tuple[int, ...]


class Joined:
    """Parameters from several sources, none of which shares a name with another."""

    folder: Path | None = None

    def __init__(self, sources: Sequence[TensorSource]) -> None:
        self._sources = {name: source for source in sources for name in source.names()}

    def names(self) -> list[str]:
        return list(self._sources)

    def dtype(self, name: str) -> str:
        return self._sources[name].dtype(name)

    def shape(self, name: str) -> Shape:
        return self._sources[name].shape(name)

    def read(self, name: str) -> np.ndarray:
        return self._sources[name].read(name)


class Part:
    """The parameters `wanted` (our name -> shape) of one folder or file, under our names and in our orientation.

    Raises `LlavaError` unless all of them and nothing else but what is `ignored` is there; `stored_names` gives a
    layout's names of ours.
    """

    def __init__(
        self,
        folder: Path,
        contents: Mapping[str, TensorFile],
        tables: Mapping[Layout, naming.Table],
        wanted: Mapping[str, Shape],
        ignored: re.Pattern[str],
        stored_names: Callable[[Layout], Mapping[str, str]],
    ) -> None:
        self.folder: Path | None = folder
        try:
            layout = naming.detect_layout(map(_without_prefix, contents), tables)
        except LlavaError as error:
            raise LlavaError(f"{folder}: {error}") from None
        self._stored: dict[str, tuple[TensorFile, str]] = {}
        left_over = []
        for name, file in contents.items():
            ours = naming.canonical_name(_without_prefix(name), tables[layout])
            if ignored.fullmatch(name):
                continue
            if ours is not None and ours in wanted and ours not in self._stored:
                self._stored[ours] = (file, name)
            else:
                left_over.append(name)
        self._turns = {name for name in wanted if layout != "paddle" and naming.is_linear(name)}
        problems = {
            "missing": [stored_names(layout)[name] for name in wanted if name not in self._stored],
            "left over": left_over,
            "misshapen": [
                f"{file_name} {list(file.shape(file_name))}"
                for name, (file, file_name) in self._stored.items()
                if self.shape(name) != wanted[name]
            ],
            "neither float32, float16 nor bfloat16": [n for n in self._stored if self.dtype(n) not in FLOATS],
        }
        if found := [f"{kind}: {some([repr(n[:200]) for n in names])}" for kind, names in problems.items() if names]:
            raise LlavaError(f"{folder}: the weights do not fit the other parts; {'; '.join(found)}")

    def names(self) -> list[str]:
        return list(self._stored)

    def dtype(self, name: str) -> str:
        file, stored = self._stored[name]
        return file.dtype(stored)

    def shape(self, name: str) -> Shape:
        file, stored = self._stored[name]
        return file.shape(stored)[::-1] if name in self._turns else file.shape(stored)

    def read(self, name: str) -> np.ndarray:
        file, stored = self._stored[name]
        array = file.read(stored)
        return array.T if name in self._turns else array


def _without_prefix(name: str) -> str:
    """A projector's name as a whole checkpoint has it: training wrappers put `base_model.model.` and more before it."""
    _, found, rest = name.partition("mm_projector.")
    return f"model.mm_projector.{rest}" if found else name
