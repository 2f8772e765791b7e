"""The model that users hold: the network, its files, and generation."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.utils.dlpack import from_dlpack

from paddle_llava.checkpoints.adapter import Merged, foreign_base, read_adapter
from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.vocabulary import extend_vocabulary
from paddle_llava.checkpoints.write import TensorSource, write_checkpoint
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.device import compute_dtype
from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.environment import physical_cores
from paddle_llava.generation.generate import generate
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.models.llava import LlavaNetwork, LlavaOutput
from paddle_llava.pretrained import find_pretrained

Progress = Callable[[int, int], None]


class _Parameters:
    """Those of a model as a `TensorSource`: each is copied when it is read, for a second model would not fit."""

    folder: Path | None = None

    def __init__(self, model: LlavaNetwork) -> None:
        self._tensors: dict[str, Tensor] = model.state_dict()

    def names(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("paddle.")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name].numpy()


class LlavaForConditionalGeneration(LlavaNetwork):
    """LLaVA 1.5 and 1.6 on Paddle.

    `model(**inputs).logits` and `model.generate(**inputs)` take what `LlavaProcessor` gives, as Paddle tensors or
    numpy arrays.
    """

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dtype: str = "float32",
        *,
        lora_path: str | Path | None = None,
        progress: Progress | None = None,
    ) -> LlavaForConditionalGeneration:
        """Load a published name (downloaded to the Hugging Face cache) or a folder, in any of the three layouts.

        `dtype` is float32, bfloat16 or float16; a device that cannot compute in it falls back with a warning. The
        current Paddle device is used. The adapter in `lora_path` is merged into the weights.
        `progress(tensors_done, tensors_in_all)` is called as they arrive. Raises `LlavaError` on anything that is
        missing, left over, misshapen or unreadable.
        """
        dtype, notice = compute_dtype(dtype)
        if notice:
            warnings.warn(notice, stacklevel=2)
        pretrained = find_pretrained(name_or_path)
        with pretrained.open_weights() as checkpoint:
            tensors: TensorSource = checkpoint
            if lora_path is not None:
                adapter = read_adapter(Path(lora_path).expanduser(), pretrained.config)
                if foreign := foreign_base(adapter, str(name_or_path)):
                    warnings.warn(foreign, stacklevel=2)
                tensors = Merged(checkpoint, adapter, dtype)
            return cls.from_tensors(pretrained.config, tensors, dtype, progress)

    @classmethod
    def from_tensors(
        cls, config: LlavaConfig, tensors: TensorSource, dtype: str = "float32", progress: Progress | None = None
    ) -> LlavaForConditionalGeneration:
        """The model of `config` with the parameters that `tensors` gives one by one, under our names, cast to `dtype`.

        `tensors` must be complete and of the right shapes, which opening a checkpoint makes sure of.
        """
        before = paddle.get_default_dtype()
        paddle.set_default_dtype(dtype)
        try:
            with paddle.LazyGuard():  # drawing random parameters first would double the loading time
                model = cls(replace(config, dtype=dtype))
        finally:
            paddle.set_default_dtype(before)
        parameters = model.state_dict()
        for done, (name, array) in enumerate(_arrays(tensors, dtype), start=1):
            _as_parameter(array)._share_buffer_to(parameters[name])
            if progress:
                progress(done, len(parameters))
        model.eval()
        return model

    def save_pretrained(self, path: str | Path, layout: Layout = "hf") -> None:
        """Write weights and configuration to `path`; the `hf` layout loads in `transformers` unchanged.

        The tokenizer and the preprocessor are the processor's: `LlavaProcessor.save_pretrained`.
        """
        weights = _Parameters(self)
        tensors, config = extend_vocabulary(weights, self.config) if layout == "hf" else (weights, self.config)
        write_checkpoint(Path(path), config, tensors, layout)

    def forward(self, input_ids: Any, **inputs: Any) -> LlavaOutput:  # type: ignore[override]
        """See `LlavaNetwork.forward`; arrays are turned into tensors."""
        tensors = {name: _tensor(value) for name, value in inputs.items()}
        return super().forward(_tensor(input_ids), **tensors)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        image_sizes: Any = None,
        **settings: Any,
    ) -> Tensor:
        """The new tokens only, int64 [batch, up to max_new_tokens]; rows that ended early are padded.

        `settings` are `SamplingParams`' fields; without them the answer is greedy. Stop strings belong to
        `ChatSession`, which sees text.
        """
        unknown = set(settings) - set(SamplingParams.__dataclass_fields__)
        if unknown:
            raise TypeError(f"generate() got unknown settings {sorted(unknown)}")
        inputs = {
            "input_ids": np.asarray(input_ids),
            "attention_mask": None if attention_mask is None else np.asarray(attention_mask),
            "pixel_values": None if pixel_values is None else np.asarray(pixel_values),
            "image_sizes": None if image_sizes is None else np.asarray(image_sizes),
        }
        steps = list(generate(PaddleEngine(self), inputs, SamplingParams(**settings)))
        return paddle.to_tensor(np.stack(steps, axis=1))


LOADING_THREADS = 4  # at most: each holds a tensor as it is stored, too


def _arrays(tensors: TensorSource, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor's name and its values in `dtype`, C-contiguous, read and cast by a few threads."""

    def read(name: str) -> np.ndarray:
        return to_dtype(tensors.read(name), tensors.dtype(name), dtype, where=name)

    threads = min(LOADING_THREADS, physical_cores())
    pending: deque[tuple[str, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for name in tensors.names():
            pending.append((name, pool.submit(read, name)))
            if len(pending) > threads:
                first, array = pending.popleft()
                yield first, array.result()
        for name, array in pending:
            yield name, array.result()


def _as_parameter(array: np.ndarray) -> Tensor:
    """On the CPU the tensor is the array's own memory: copying it takes as long as reading it."""
    flags = array.flags
    if paddle.get_device() == "cpu" and array.dtype == np.float32 and flags.writeable and flags.c_contiguous:
        return from_dlpack(array)
    return paddle.to_tensor(array)


def _tensor(value: Any) -> Any:
    return paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
