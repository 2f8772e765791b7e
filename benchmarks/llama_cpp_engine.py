"""llama.cpp by its own C functions, as an engine like ours: what a peer process runs."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import llama_cpp_source
from gguf_files import DECODER, TOWER

llama_cpp_source.prepare_import()
import llama_cpp  # noqa: E402
from llama_cpp import mtmd_cpp  # noqa: E402

CONTEXT = 4096


class LlamaCppEngine:
    """One conversation; all settings that concern speed are its defaults, but for the number of threads."""

    def __init__(self, folder: Path, image_token_id: int) -> None:
        threads = int(os.environ["OMP_NUM_THREADS"])
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, None)
        mtmd_cpp.mtmd_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(folder / DECODER).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._n_batch = settings.n_batch
        tower = mtmd_cpp.mtmd_context_params_default()
        tower.n_threads, tower.use_gpu, tower.print_timings, tower.warmup = threads, False, False, False
        self._tower = mtmd_cpp.mtmd_init_from_file(str(folder / TOWER).encode(), self._model, tower)
        if not (self._model and self._context and self._tower):
            raise RuntimeError(f"llama.cpp refuses the files in {folder}")
        self._image_token_id = image_token_id
        self._width = llama_cpp.llama_model_n_embd(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
        self._features = llama_cpp.llama_batch_init(self._n_batch, self._width, 1)
        self._chunks = self._picture()
        self.reset()

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self.length = 0

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[np.ndarray]:
        """Of a picture of its own, prepared before, in the place of the one given."""
        for index in range(mtmd_cpp.mtmd_input_chunks_size(self._chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(self._chunks, index)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                continue
            if mtmd_cpp.mtmd_encode_chunk(self._tower, chunk):
                raise RuntimeError("llama.cpp could not encode the picture")
            shape = (mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk), self._width)
            return [np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(self._tower), shape).copy()]
        raise RuntimeError("llama.cpp found no picture in its prompt")

    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """As its own programs do it: words and pictures in turn, each in a batch of its own."""
        ids = np.asarray(inputs["input_ids"])[0]
        features = iter(inputs.get("image_features") or ())
        is_image = ids == self._image_token_id
        edges = [0, *(np.flatnonzero(np.diff(is_image)) + 1).tolist(), len(ids)]
        for start, end in itertools.pairwise(edges):
            values = next(features) if is_image[start] else ids[start:end]
            for at in range(0, len(values), self._n_batch):
                self._run(values[at : at + self._n_batch])
        return self._logits()

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        self._run(np.asarray(token_ids))
        return self._logits()

    def _run(self, values: np.ndarray) -> None:
        """Token ids [length], or features [length, width]."""
        if values.ndim == 1:
            batch, given = self._batch, np.ascontiguousarray(values, np.int32)
            ctypes.memmove(batch.token, given.ctypes.data, given.nbytes)
        else:
            batch, given = self._features, np.ascontiguousarray(values, np.float32)
            ctypes.memmove(batch.embd, given.ctypes.data, given.nbytes)
        batch.n_tokens = len(values)
        for row in range(len(values)):
            batch.pos[row] = self.length + row
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
            batch.logits[row] = row == len(values) - 1
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not run a batch")
        self.length += len(values)

    def _logits(self) -> np.ndarray:
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (1, self._vocabulary)).copy()

    def _picture(self) -> Any:
        """A prompt with one random picture of the tower's size, cut into its chunks."""
        pixels = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmaps = (ctypes.c_void_p * 1)(mtmd_cpp.mtmd_bitmap_init(336, 336, data))
        marker = mtmd_cpp.mtmd_default_marker()
        text = mtmd_cpp.mtmd_input_text(text=marker, text_len=len(marker), add_special=True, parse_special=True)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        if mtmd_cpp.mtmd_tokenize(self._tower, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError("llama.cpp could not prepare the picture")
        return chunks
