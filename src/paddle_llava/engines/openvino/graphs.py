"""A model's three graphs: built from its tensors, written to a folder, and made ready to run from either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino
from openvino import Core, Model

from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.write import Progress, TensorSource
from paddle_llava.config import LlavaConfig
from paddle_llava.engines.openvino.batch import OpenVINOBatchEngine, for_many
from paddle_llava.engines.openvino.calibration import Calibration, Folded
from paddle_llava.engines.openvino.decoder import decoder_graph
from paddle_llava.engines.openvino.engine import OpenVINOEngine
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.inputs import Inputs
from paddle_llava.engines.openvino.pages import released
from paddle_llava.engines.openvino.vision import text_embedding_graph, vision_graph
from paddle_llava.engines.openvino.weights import Weights
from paddle_llava.errors import LlavaError

E = TypeVar("E", OpenVINOEngine, OpenVINOBatchEngine)
"""For one conversation, or for many sequences at once."""
DECODER, EMBEDDING, VISION = (f"openvino_{part}_model" for part in ("language", "text_embeddings", "vision_embeddings"))


def build(
    config: LlavaConfig,
    tensors: TensorSource,
    formats: Formats,
    progress: Progress | None = None,
    calibration: Calibration | None = None,
) -> Iterator[tuple[str, Model]]:
    """The graphs by name, one after another: a graph that is done with need not wait in memory for the next."""
    calibration = calibration or Calibration()
    weights = Weights(Folded(tensors, calibration), progress, calibration.importance)
    yield VISION, vision_graph(config, weights, formats.rest)
    yield EMBEDDING, text_embedding_graph(config, weights, formats.rest)
    layers = formats.layers(config.text)
    yield DECODER, decoder_graph(config.text, weights, layers, formats.rest)
    weights.finish()


def newline_of(config: LlavaConfig, tensors: TensorSource) -> np.ndarray | None:
    """`image_newline` as float32 [hidden_size], which stands in none of the graphs."""
    if not config.has_image_newline:
        return None
    return to_dtype(tensors.read("image_newline"), tensors.dtype("image_newline"), "float32", where="image_newline")


def engine_in_memory(
    kind: type[E],
    config: LlavaConfig,
    tensors: TensorSource,
    formats: Formats,
    progress: Progress | None = None,
    calibration: Calibration | None = None,
) -> E:
    """An engine of `tensors` in `formats`, with nothing written to the disk."""
    models = dict(build(config, tensors, formats, progress, calibration))
    return _compiled(kind, config, models, formats, newline_of(config, tensors))


def engine_from_folder(
    kind: type[E], folder: Path, config: LlavaConfig, formats: Formats, image_newline: np.ndarray | None
) -> E:
    """The engine of graphs that were written to `folder`. Raises `LlavaError` for a file that cannot be read."""
    paths = {name: folder / f"{name}.xml" for name in (DECODER, EMBEDDING, VISION)}
    for path in paths.values():
        _check_whole(path)
    try:
        decoder = _core().read_model(paths[DECODER])
    except RuntimeError as error:
        raise _refused(paths[DECODER], error) from None
    with released(folder / f"{DECODER}.bin"):  # which wants the graph to be held
        return _compiled(kind, config, {**paths, DECODER: decoder}, formats, image_newline)


def _check_whole(path: Path) -> None:
    """OpenVINO tries all formats it knows on a file that is no graph of its own, and says so at length."""
    try:
        with path.open("rb") as file:
            first = file.read(5)
            file.seek(max(0, path.stat().st_size - 20))
            last = file.read()
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror}); export again") from None
    if first != b"<?xml" or not last.rstrip().endswith(b"</net>"):
        raise LlavaError(f"{path}: truncated or damaged; export again")


def _refused(what: str | Path, error: RuntimeError) -> LlavaError:
    reason = " ".join(str(error).split())[-200:]
    return LlavaError(f"{what}: OpenVINO cannot make a model of it ({reason})")


@cache
def _core() -> Core:
    """One for the whole process, never let go: the CPU plug-in of each gives the thread a stack for its signal handlers
    (`sigaltstack`), and when several come and go the thread is left with one that is no more, and dies of Ctrl-C."""
    return Core()


def _compiled(
    kind: type[E],
    config: LlavaConfig,
    sources: Mapping[str, Model | Path],
    formats: Formats,
    image_newline: np.ndarray | None,
) -> E:
    core = _core()

    def compiled(name: str, settings: dict[str, Any]) -> openvino.CompiledModel:
        source = sources[name]
        try:
            model = source if isinstance(source, Model) else core.read_model(source)
            if name == DECODER:
                model = for_many(model)
            return core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings})
        except RuntimeError as error:
            raise _refused(source if isinstance(source, Path) else name, error) from None

    other = formats.other_settings()
    decoder = compiled(DECODER, formats.decoder_settings(config.text))
    config = replace(config, dtype=f"openvino {formats.weights}")  # what evaluations note of their settings
    return kind(Inputs(config, compiled(EMBEDDING, other), compiled(VISION, other), image_newline), decoder)
