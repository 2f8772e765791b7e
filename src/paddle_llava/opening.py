"""A name or a folder -> who runs it, Paddle or OpenVINO, and its processor; chosen in one place for every command."""

from __future__ import annotations

import os
import re
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypedDict

from paddle_llava.checkpoints.folder import weight_files
from paddle_llava.console import importing_paddle, note, progress_bar
from paddle_llava.device import compute_dtype, default_dtype, known_dtype, select_device
from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.generation.batch import BatchEngine
from paddle_llava.generation.generate import Engine
from paddle_llava.pretrained import Pretrained, find_pretrained
from paddle_llava.processing.processor import LlavaProcessor

if TYPE_CHECKING:
    from typing_extensions import Unpack

ENGINES = ("auto", "paddle", "openvino")
SMALL = 500_000_000
"""Bytes of weights up to which OpenVINO takes them as they are, in float32, anew at every start."""
EXPORTED = "openvino_language_model.xml"
WEIGHTS_OF_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "bf16"}


class Options(TypedDict, total=False):
    """How a model is run.

    `engine` is one of `ENGINES`: `auto` is OpenVINO on a CPU where it is installed, else Paddle. `weights` (int4, int8,
    bf16, f32) is the number format that OpenVINO holds weights in, and otherwise follows from `dtype`, or is int8
    (f32 for a small model).
    """

    engine: str
    weights: str | None
    conv_mode: str | None
    dtype: str | None
    device: str | None
    lora_path: str | None


def open_model(model_path: str, **options: Unpack[Options]) -> tuple[Engine, LlavaProcessor]:
    """The model of that name or folder, ready to run; whatever can be wrong is found before weights are read.

    Raises `LlavaError`.
    """
    return _open(model_path, False, **options)


def open_for_many(model_path: str, **options: Unpack[Options]) -> tuple[BatchEngine, LlavaProcessor]:
    """As `open_model`, for many sequences at once."""
    return _open(model_path, True, **options)


def _open(
    model_path: str,
    many: bool,
    engine: str = "auto",
    weights: str | None = None,
    conv_mode: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    lora_path: str | None = None,
) -> tuple[Any, LlavaProcessor]:
    name = os.path.basename(os.path.abspath(model_path))
    if engine not in ENGINES:
        raise LlavaError(f"engine {engine[:40]!r} is not one of {', '.join(ENGINES)}{did_you_mean(engine, ENGINES)}")
    if weights and dtype:
        raise LlavaError("--weights and --dtype exclude one another; give one of them")
    if dtype:
        known_dtype(dtype)
    by_paddle = _by_paddle(engine, device, wanted=_wants_openvino(model_path, engine, weights))
    if by_paddle:
        if weights:
            raise LlavaError("--weights is for the openvino engine; Paddle takes --dtype")
        with importing_paddle():
            select_device(device)
        compute_dtype(dtype or default_dtype())
    pretrained = find_pretrained(model_path)
    processor = LlavaProcessor.from_pretrained(pretrained.folder, conv_mode=conv_mode)
    if by_paddle:
        return _paddle(many, pretrained, dtype or default_dtype(), lora_path, name), processor
    return _openvino(many, pretrained, processor, weights, dtype, lora_path, conv_mode, name)


def _wants_openvino(model_path: str, engine: str, weights: str | None) -> str | None:
    """What asks for OpenVINO in so many words, if anything does."""
    if engine == "openvino":
        return "--engine openvino"
    if os.path.isfile(os.path.join(os.path.expanduser(model_path), EXPORTED)):
        if engine == "paddle":
            raise LlavaError(
                f"{model_path!r}: OpenVINO graphs, which Paddle cannot run; give the checkpoint they were made of"
            )
        return "this folder of OpenVINO graphs"
    return f"--weights {weights}" if weights and engine == "auto" else None


def _by_paddle(engine: str, device: str | None, wanted: str | None) -> bool:
    if engine == "paddle":
        return True
    on_cpu = bool(re.fullmatch(r"cpu(:\d+)?", device)) if device else wanted is not None or not _has_accelerator()
    if not wanted:
        return not (on_cpu and find_spec("openvino"))
    if not on_cpu:
        raise LlavaError(f"--device {device}: OpenVINO runs on the CPU here, and {wanted} asks for it")
    need_openvino(wanted)
    return False


def need_openvino(what: str) -> None:
    """Raises `LlavaError` where OpenVINO, which `what` needs, is not installed."""
    if not find_spec("openvino"):
        raise LlavaError(f"{what} needs OpenVINO, which is not installed; install it with: pip install openvino")


def _has_accelerator() -> bool:
    """Whether Paddle would run on something better than the CPU; it is imported only if it was built for that."""
    names = {(distribution.metadata["Name"] or "").lower() for distribution in distributions()}
    if names & {"paddlepaddle"} and not any(name.startswith("paddle-custom") for name in names):
        return False
    if not find_spec("paddle"):
        return False
    with importing_paddle():
        return select_device() != "cpu"


def _paddle(many: bool, pretrained: Pretrained, dtype: str, lora_path: str | None, name: str) -> Engine | BatchEngine:
    with importing_paddle():
        from paddle_llava.engines.paddle import PaddleEngine
        from paddle_llava.engines.paddle_batch import PaddleBatchEngine
        from paddle_llava.llava import LlavaForConditionalGeneration
    with progress_bar(f"loading {name}") as progress:
        model = LlavaForConditionalGeneration.from_pretrained(
            pretrained.folder, dtype=dtype, lora_path=lora_path, progress=progress
        )
    return PaddleBatchEngine(model) if many else PaddleEngine(model)


def _openvino(
    many: bool,
    pretrained: Pretrained,
    processor: LlavaProcessor,
    weights: str | None,
    dtype: str | None,
    lora_path: str | None,
    conv_mode: str | None,
    name: str,
) -> tuple[Engine | BatchEngine, LlavaProcessor]:
    from paddle_llava.engines.openvino.batch import OpenVINOBatchEngine
    from paddle_llava.engines.openvino.cache import cached_export
    from paddle_llava.engines.openvino.engine import OpenVINOEngine
    from paddle_llava.engines.openvino.export import Exported, adapter_of, calibrated, is_exported, with_adapter
    from paddle_llava.engines.openvino.formats import Formats
    from paddle_llava.engines.openvino.graphs import engine_in_memory

    kind: Any = OpenVINOBatchEngine if many else OpenVINOEngine
    if is_exported(pretrained.folder):
        exported = Exported.read(pretrained.folder)
        if lora_path or dtype or weights not in (None, exported.formats.weights):
            raise LlavaError(
                f"{pretrained.folder}: its weights are {exported.formats.weights} and stay as they are; "
                "export the checkpoint they were made of anew"
            )
        with progress_bar(f"loading {name}"):
            return exported.engine(kind), processor
    small = sum(path.stat().st_size for path in weight_files(pretrained.folder)) <= SMALL
    default = WEIGHTS_OF_DTYPE[known_dtype(dtype)] if dtype else "f32" if small else "int8"
    formats = Formats(weights or default)
    if dtype and known_dtype(dtype) == "float16":
        note("float16: OpenVINO on a CPU holds 16-bit weights as bfloat16")
    if small:
        with pretrained.open_weights() as checkpoint, progress_bar(f"loading {name}") as progress:
            tensors = with_adapter(checkpoint, adapter_of(pretrained, lora_path))
            calibration = calibrated(formats, pretrained.config, tensors, processor, progress=progress)
            return engine_in_memory(kind, pretrained.config, tensors, formats, progress, calibration), processor
    folder = cached_export(pretrained, formats, lora_path, name)
    try:
        # Its tokenizer knows <image>, as the embedding in the folder does.
        with progress_bar(f"loading {name}"):
            return Exported.read(folder).engine(kind), LlavaProcessor.from_pretrained(folder, conv_mode=conv_mode)
    except LlavaError as error:
        raise LlavaError(f"{error} ({folder} is of the cache: delete it, and it is made anew)") from None
