"""Random weights of any shape as a folder of OpenVINO graphs, as `llava export` would write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino

from paddle_llava.checkpoints.config_file import config_to_dict
from paddle_llava.engines.openvino import weights
from paddle_llava.engines.openvino.export import SETTINGS
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.graphs import DECODER, build
from paddle_llava.engines.openvino.quantize import Quantized
from paddle_llava.json_file import write_json
from random_checkpoint import RandomSource, random_config, save_companions

RANDOM = np.random.default_rng(0)  # one for all matrices: of equal ones, only one would be written


class OpenVINOBuilder:
    """A process of its own, so that making graphs counts in nobody's memory."""

    def build(self, folder: Path, shape: str, form: str) -> int:
        """Write them with `form` (int8 or int4) weights; returns the bytes that decoding a token reads.

        Codes are drawn instead of searched, which speeds nothing up but the making.
        """
        weights.quantize = _drawn  # type: ignore[assignment]
        config, tokenizer = random_config(shape, "float16")
        formats = Formats(form)
        folder.mkdir(parents=True)
        for name, model in build(config, RandomSource(config, tokenizer.get_vocab_size()), formats):
            openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
            del model
        save_companions(folder, config, tokenizer)
        write_json(folder / SETTINGS, {"dtype": formats.weights, "group_size": formats.group(config.text)})
        write_json(folder / "config.json", config_to_dict(config, "hf"))
        return (folder / f"{DECODER}.bin").stat().st_size


def _drawn(weight: np.ndarray, bits: int, group_size: int | None, importance: np.ndarray | None = None) -> Quantized:
    rows, columns = weight.shape
    groups = columns // (group_size or columns)
    codes = np.frombuffer(RANDOM.bytes(rows * columns), np.uint8).reshape(rows, columns)
    if bits == 8:
        return Quantized(codes.view(np.int8), np.full((rows, groups), 0.02 / 74, np.float16), 8)
    return Quantized((codes >> 4).view(np.int8) - np.int8(8), np.full((rows, groups), 0.02 / 4.6, np.float16), 4)
