"""A checkpoint as a folder of OpenVINO graphs, which `llava chat` and `openvino_genai` read."""

from __future__ import annotations

import gc
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from paddle_llava.checkpoints.adapter import Adapter, Merged, foreign_base, read_adapter
from paddle_llava.checkpoints.config_file import config_to_dict
from paddle_llava.checkpoints.vocabulary import extend_vocabulary
from paddle_llava.checkpoints.write import Progress, TensorSource
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.console import importing_paddle
from paddle_llava.engines.openvino.calibration import Calibration
from paddle_llava.engines.openvino.conversations import calibration_inputs
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.graphs import DECODER, E, build, engine_from_folder, newline_of
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json, write_json
from paddle_llava.pretrained import Pretrained, find_pretrained
from paddle_llava.processing.processor import LlavaProcessor

SETTINGS = "openvino_config.json"
PATIENCE = 1.0
"""Seconds to wait for another export to the same folder, which may just be ending."""


def export(
    source: str | Path,
    target: Path,
    formats: Formats,
    *,
    lora_path: str | Path | None = None,
    calibrate: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the checkpoint `source` (a name or a folder, of any layout) as graphs to the new folder `target`.

    With int4 weights the model first runs conversations in float32, layer by layer: those of the training file
    `calibrate`, or built-in ones. `progress` is told how far that is, and then the rest.

    The tokenizer, the preprocessor and `config.json` go along, so that `target` is a model by itself. The adapter in
    `lora_path` is merged. Everything is written beside `target`, which is there only when all of it is. Raises
    `LlavaError`.
    """
    target = Path(target).expanduser().resolve()
    _check_target(target)
    pretrained = find_pretrained(source)
    if is_exported(pretrained.folder):
        raise LlavaError(f"{pretrained.folder}: holds OpenVINO graphs already; export the checkpoint they were made of")
    export_checkpoint(pretrained, target, formats, adapter_of(pretrained, lora_path), calibrate, progress)


def export_checkpoint(
    pretrained: Pretrained,
    target: Path,
    formats: Formats,
    adapter: Adapter | None,
    calibrate: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """`export` of a checkpoint that was found, with an adapter that was read."""
    processor = LlavaProcessor.from_pretrained(pretrained.folder)
    beside = target.with_name(f".{target.name}.incomplete")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            _check_target(target)  # another export may have ended meanwhile
            shutil.rmtree(beside, ignore_errors=True)  # of an export that was killed
            beside.mkdir()
            try:
                _write(beside, pretrained, processor, formats, adapter, calibrate, progress)
                beside.replace(target)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise LlavaError(f"{error.filename or target}: cannot be written ({error.strerror or error})") from error


def _check_target(target: Path) -> None:
    if target == Path.cwd():
        raise LlavaError(f"{target}: is the working folder, which cannot be replaced; choose another place")
    if os.path.ismount(target):
        raise LlavaError(f"{target}: is a mount point, which cannot be replaced; give a folder inside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LlavaError(f"{target}: already exists and is not an empty folder; choose another place")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Nobody else exports to `target` meanwhile. A process that is killed leaves the file, but not the lock."""
    from huggingface_hub.utils import WeakFileLock

    lock = target.with_name(f".{target.name}.incomplete.lock")
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(lock, timeout=PATIENCE))
        except TimeoutError:
            raise LlavaError(
                f"{target}: another export is writing this folder; wait for it, or if there is none, delete {lock}"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # Windows deletes no file that is open
                lock.unlink()


def _write(
    folder: Path,
    pretrained: Pretrained,
    processor: LlavaProcessor,
    formats: Formats,
    adapter: Adapter | None,
    data: Path | None,
    progress: Progress | None,
) -> None:
    layout = _layout(processor)
    with pretrained.open_weights() as weights:
        tensors: TensorSource = with_adapter(weights, adapter)
        calibration = calibrated(formats, pretrained.config, tensors, processor, data, progress)
        config = pretrained.config
        if layout == "hf":
            tensors, config = extend_vocabulary(tensors, config)
        _check_space(folder, tensors, formats.bytes_per_parameter(config.text))
        for name, model in build(config, tensors, formats, progress, calibration):
            try:
                openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
            except RuntimeError as error:  # OpenVINO's word for a full disk, too
                raise OSError(None, str(error).strip().splitlines()[-1][:200], str(folder)) from None
            del model
            gc.collect()
        newline = newline_of(config, tensors)
    processor.save_pretrained(folder, layout)
    dtype = weights.dtype("language_model.embed_tokens.weight")
    # Of the default template, too, which would else be guessed from the name of the new folder.
    raw = config_to_dict(replace(config, dtype=dtype, conv_mode=processor.template.name), layout)
    if newline is not None:
        raw["image_newline"] = newline.tolist()  # where openvino_genai looks for it, and we too
    write_json(folder / SETTINGS, {"dtype": formats.weights, "group_size": formats.group(config.text)})
    write_json(folder / "config.json", raw)


def calibrated(
    formats: Formats,
    config: LlavaConfig,
    tensors: TensorSource,
    processor: LlavaProcessor,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """What 4 bits want to know of a model; nothing, and no Paddle is imported, where none are asked for."""
    if formats.weights != "int4":
        if data is not None:
            raise LlavaError(f"--calibrate is for int4 weights; {formats.weights} ones need none")
        return Calibration()
    with importing_paddle():
        from paddle_llava.engines.openvino.calibrate import calibrate
    layers = [number for number, form in enumerate(formats.layers(config.text)) if form.name == "int4"]
    conversations = calibration_inputs(processor, data)
    return calibrate(config, tensors, conversations, layers, formats.group(config.text), progress)


def adapter_of(pretrained: Pretrained, lora_path: str | Path | None) -> Adapter | None:
    """The adapter in `lora_path`, if one is asked for. Warns of one that was made for another model."""
    if lora_path is None:
        return None
    adapter = read_adapter(Path(lora_path).expanduser(), pretrained.config)
    if foreign := foreign_base(adapter, str(pretrained.folder)):
        warnings.warn(foreign, stacklevel=2)
    return adapter


def with_adapter(weights: TensorSource, adapter: Adapter | None) -> TensorSource:
    """`weights` with `adapter` merged; in float32, for they are rounded once more."""
    return weights if adapter is None else Merged(weights, adapter, "float32")


def is_exported(folder: Path) -> bool:
    """Whether `folder` holds graphs instead of weights."""
    return (folder / f"{DECODER}.xml").is_file()


@dataclass(frozen=True)
class Exported:
    """A folder that `export` has written."""

    folder: Path
    config: LlavaConfig
    formats: Formats
    image_newline: np.ndarray | None

    @classmethod
    def read(cls, folder: Path) -> Exported:
        """Raises `LlavaError` naming the file and the key."""
        pretrained = find_pretrained(folder)
        raw = read_json(folder / SETTINGS)
        weights, group_size = raw.get("dtype"), raw.get("group_size", 128)
        if not isinstance(weights, str) or not isinstance(group_size, int):
            raise LlavaError(f"{folder / SETTINGS}: dtype and group_size are not what llava export writes")
        config = pretrained.config
        newline = _newline(pretrained.raw, config, folder) if config.has_image_newline else None
        return cls(folder, config, Formats(weights, group_size), newline)

    def engine(self, kind: type[E]) -> E:
        return engine_from_folder(kind, self.folder, self.config, self.formats, self.image_newline)


def _newline(raw: dict[str, Any], config: LlavaConfig, folder: Path) -> np.ndarray:
    values = raw.get("image_newline")
    width = config.text.hidden_size
    numbers = isinstance(values, Sequence) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values or ()) != width:
        raise LlavaError(f"{folder / 'config.json'}: image_newline is not a list of {width} numbers; export again")
    return np.array(values, np.float32)


def _layout(processor: LlavaProcessor) -> Layout:
    """`hf`, which `openvino_genai` reads too, unless that cannot express the model."""
    config = processor.config
    anyres_without_unpad = config.image_grid_pinpoints is not None and not config.unpad
    if config.projector_type != "mlp2x_gelu" or anyres_without_unpad:
        return "original"
    try:
        processor.tokenizer_of("hf")
    except LlavaError:  # its vocabulary is padded: the place for `<image>` is not the tokenizer's next
        return "original"
    return "hf"


def _check_space(folder: Path, tensors: TensorSource, bytes_per_parameter: float) -> None:
    parameters = sum(int(np.prod(tensors.shape(name))) for name in tensors.names())
    needed = int(parameters * bytes_per_parameter)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LlavaError(f"{folder.parent}: the disk is too full: {needed} bytes are needed, {free} are free")
