"""Opening a checkpoint: its names are translated and its shapes checked before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddle_llava.checkpoints import names as naming
from paddle_llava.checkpoints.dtypes import FLOATS
from paddle_llava.checkpoints.folder import TensorFile, open_folder, some
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.errors import LlavaError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Stored:
    """Where a parameter is; `shape` is ours, Linear weights [in, out]."""

    file: TensorFile
    name: str
    transposed: bool

    @property
    def shape(self) -> Shape:
        return _turned(self.file.shape(self.name), self.transposed)

    @property
    def dtype(self) -> str:
        return self.file.dtype(self.name)


class Checkpoint:
    """A complete set of weights, under our names and in our orientation, read one by one.

    `config` is the model's, `layout` how it is stored, `folder` where; `carries_vision_tower` tells a vision
    tower of its own from a separate one. A context manager, which closes the files.
    """

    def __init__(
        self,
        folder: Path,
        config: LlavaConfig,
        layout: Layout,
        carries_vision_tower: bool,
        stored: Mapping[str, _Stored],
        files: ExitStack,
    ) -> None:
        self.folder = folder
        self.config = config
        self.layout = layout
        self.carries_vision_tower = carries_vision_tower
        self._stored = stored
        self._files = files

    def names(self) -> list[str]:
        """In the order of the files and of the bytes in them."""
        return list(self._stored)

    def shape(self, name: str) -> Shape:
        return self._stored[name].shape

    def dtype(self, name: str) -> str:
        """float32, float16 or bfloat16, as stored."""
        return self._stored[name].dtype

    def read(self, name: str) -> np.ndarray:
        """A new array, `uint16` for bfloat16; a transposed view where the file has it the other way round.

        Several threads may read. Raises `LlavaError` when its file is damaged.
        """
        stored = self._stored[name]
        array = stored.file.read(stored.name)
        return array.T if stored.transposed else array

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(folder: Path, config: LlavaConfig, tower: Callable[[], Path] | None = None) -> Checkpoint:
    """The weights in `folder`, known to be all there and of the shapes that `config` asks for.

    `tower` gives the folder of the separate CLIP vision tower; it is asked only when the checkpoint carries
    none, for it may have to be downloaded. Only headers are read. Raises `LlavaError` naming the missing,
    left-over and misshapen tensors.
    """
    shapes = naming.parameter_shapes(config)
    of_tower = {name: shape for name, shape in shapes.items() if name.startswith("vision_tower.")}
    tied = ["lm_head.weight"] if config.text.tie_word_embeddings else []
    with ExitStack() as files:
        contents = open_folder(folder, files)
        layout = _detect(folder, contents, naming.CHECKPOINT_NAMES)
        known = naming.CHECKPOINT_NAMES[layout]
        stored, left_over = _match(folder, contents, layout, known, naming.IGNORED, tied)
        carries = layout == "hf" or not of_tower.keys().isdisjoint(stored)
        wanted = shapes if carries else {n: s for n, s in shapes.items() if n not in of_tower}
        _check_vocabulary(folder, stored, config)
        _check(folder, stored, left_over, wanted, naming.stored_names(config, layout))
        if not carries:
            if tower is None:
                name = config.vision_tower_name or "its CLIP vision tower"
                raise LlavaError(f"{folder}: carries no vision tower; the folder of {name} is needed too")
            stored |= _open_tower(tower(), of_tower, files)
        return Checkpoint(folder, config, layout, carries, stored, files.pop_all())


def _open_tower(folder: Path, shapes: Mapping[str, Shape], files: ExitStack) -> dict[str, _Stored]:
    contents = open_folder(folder, files)
    layout = _detect(folder, contents, naming.TOWER_NAMES)
    known = naming.TOWER_NAMES[layout]
    stored, left_over = _match(folder, contents, layout, known, naming.IGNORED_IN_TOWER)
    _check(folder, stored, left_over, shapes, naming.tower_names(shapes, layout))
    return stored


def _detect(folder: Path, contents: Iterable[str], known: Mapping[Layout, naming.Table]) -> Layout:
    try:
        return naming.detect_layout(contents, known)
    except LlavaError as error:
        raise LlavaError(f"{folder}: {error}") from None


def _match(
    folder: Path,
    contents: Mapping[str, TensorFile],
    layout: Layout,
    known: naming.Table,
    ignored: re.Pattern[str],
    unwanted: Collection[str] = (),
) -> tuple[dict[str, _Stored], list[str]]:
    """The tensors by our names, and the names of those that mean nothing to us."""
    stored: dict[str, _Stored] = {}
    left_over = []
    for name, file in contents.items():
        ours = naming.canonical_name(name, known)
        if ignored.fullmatch(name) or ours in unwanted:
            continue
        if ours is None:
            left_over.append(name)
        elif ours in stored:
            raise LlavaError(f"{folder}: {stored[ours].name!r} and {name!r} are the same parameter; keep one")
        else:
            stored[ours] = _Stored(file, name, layout != "paddle" and naming.is_linear(ours))
    return stored, left_over


def _check_vocabulary(folder: Path, stored: Mapping[str, _Stored], config: LlavaConfig) -> None:
    """A `config.json` that has missed a grown vocabulary deserves a better error than two wrong shapes."""
    embedding, lm_head = stored.get("language_model.embed_tokens.weight"), stored.get("lm_head.weight")
    if embedding is None or not embedding.shape:
        return
    rows, expected = embedding.shape[0], config.text.vocab_size
    if rows != expected and (lm_head is None or lm_head.shape[-1:] == (rows,)):
        raise LlavaError(
            f"{folder}: the weights have a vocabulary of {rows} tokens, config.json says {expected}; "
            f"correct vocab_size in config.json to {rows}"
        )


def _check(
    folder: Path,
    stored: Mapping[str, _Stored],
    left_over: list[str],
    wanted: Mapping[str, Shape],
    stored_names: Mapping[str, str],
) -> None:
    """Raise one error of all differences between what is `stored` and what is `wanted`."""
    missing = [stored_names[name] for name in wanted if name not in stored]
    left_over = left_over + [entry.name for name, entry in stored.items() if name not in wanted]
    misshapen, unreadable = [], []
    for name, entry in stored.items():
        if name in wanted and entry.shape != wanted[name]:
            found, expected = (_turned(s, entry.transposed) for s in (entry.shape, wanted[name]))
            misshapen.append(f"{entry.name!r} {list(found)} instead of {list(expected)}")
        elif name in wanted and entry.dtype not in FLOATS:
            unreadable.append(f"{entry.name!r} ({entry.dtype[:20]!r})")
    problems = {
        "missing": [repr(name) for name in missing],
        "left over": [repr(name[:200]) for name in left_over],
        "misshapen": misshapen,
        "neither float32, float16 nor bfloat16": unreadable,
    }
    found_problems = [f"{kind}: {some(items)}" for kind, items in problems.items() if items]
    if found_problems:
        raise LlavaError(f"{folder}: the weights do not fit config.json; {'; '.join(found_problems)}")


def _turned(shape: Shape, transposed: bool) -> Shape:
    return shape[::-1] if transposed else shape
