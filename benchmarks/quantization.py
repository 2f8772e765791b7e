"""What 8 and 4 bits cost a model: how its weights are rounded, and what that does to its answers.

    python benchmarks/quantization.py [--model-path FOLDER] [--data conversations.json] [--street 60]

Three tables in Markdown. The first is of one layer of the 7B's shape with weights and inputs drawn as trained models
have them (heavy-tailed, a few channels far larger than the others): the error of its output. The second is of the model
in `--model-path` (default: the demonstration's random one), its matrices rounded and run by Paddle in float32, on
conversations that it was not calibrated with (default: built-in ones): perplexity, divergence from the exact model, and
how often the likeliest token stays the same. With `--street N` a third: `llava eval street` by the OpenVINO engine in
each number format, on N pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paddle_llava.console import importing_paddle
from peers import prepare, scratch_folder, table

with importing_paddle():
    import paddle

    from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.names import is_linear
from paddle_llava.checkpoints.write import TensorSource
from paddle_llava.config import LlavaConfig
from paddle_llava.engines.openvino.calibrate import calibrate
from paddle_llava.engines.openvino.calibration import Calibration, Folded
from paddle_llava.engines.openvino.conversations import calibration_inputs
from paddle_llava.engines.openvino.formats import GROUP_SIZES, WEIGHTS, Format, Formats
from paddle_llava.engines.openvino.quantize import quantize
from paddle_llava.hub import local_folder
from paddle_llava.pretrained import find_pretrained

HELD_OUT = 56_000_000
Rounding = Callable[[np.ndarray, int, int | None, np.ndarray | None], np.ndarray]


class Choice(NamedTuple):
    """A way to store weights: `calibrated` tells whether the layers' inputs are known."""

    name: str
    formats: Formats
    rounding: Rounding
    calibrated: bool = False


def by_magnitude(
    weight: np.ndarray, bits: int, group_size: int | None, importance: np.ndarray | None = None
) -> np.ndarray:
    """With the greatest weight of a group as the greatest code."""
    grouped = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    scale = _half(np.abs(grouped).max(-1, keepdims=True) / (127 if bits == 8 else 7))
    return (np.rint(grouped / scale) * scale).reshape(weight.shape)


def between_the_ends(
    weight: np.ndarray, bits: int, group_size: int | None, importance: np.ndarray | None = None
) -> np.ndarray:
    """4 bits with a zero point for each group: its least and its greatest weight are the codes 0 and 15."""
    if bits == 8:
        return by_magnitude(weight, bits, group_size)
    grouped = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    low, high = (np.minimum(grouped.min(-1, keepdims=True), 0), np.maximum(grouped.max(-1, keepdims=True), 0))
    scale = _half((high - low) / 15)
    zero = np.rint(-low / scale)
    return ((np.rint(grouped / scale + zero).clip(0, 15) - zero) * scale).reshape(weight.shape)


def _half(scale: np.ndarray) -> np.ndarray:
    return np.maximum(scale, 1e-7).astype(np.float16).astype(np.float32)


def searched(weight: np.ndarray, bits: int, group_size: int | None, importance: np.ndarray | None = None) -> np.ndarray:
    return quantize(weight, bits, group_size, importance).dequantized()


CHOICES = (
    Choice("int8, by magnitude", Formats("int8"), by_magnitude),
    Choice("int8", Formats("int8"), searched),
    *(
        Choice(f"int4, groups of {size}{name}", Formats("int4", size), rounding, calibrated)
        for size in GROUP_SIZES[::-1]
        for name, rounding, calibrated in (
            (", by magnitude", by_magnitude, False),
            (", by magnitude with zero points", between_the_ends, False),
            (", not calibrated", searched, False),
            ("", searched, True),
        )
    ),
)


class Rounded:
    """The tensors of a model with every matrix that an engine would hold in few bits taken there and back."""

    folder: Path | None = None

    def __init__(self, base: TensorSource, layers: list[Format], choice: Choice, calibration: Calibration) -> None:
        self._base, self._layers, self._choice = Folded(base, calibration), layers, choice
        self._importance = calibration.importance
        self.names, self.shape = base.names, base.shape

    def dtype(self, name: str) -> str:
        return "float32"

    def read(self, name: str) -> np.ndarray:
        array = to_dtype(self._base.read(name), self._base.dtype(name), "float32", where=name)
        if not (is_linear(name) or name == "language_model.embed_tokens.weight"):
            return array
        parts = name.split(".")
        form = self._layers[int(parts[2])] if parts[:2] == ["language_model", "layers"] else Format("int8")
        matrix = np.ascontiguousarray(array.T) if is_linear(name) else array
        bits, group = (4, form.group_size) if form.name == "int4" else (8, None)
        if bits == 4 and matrix.shape[1] % (group or 1):
            bits, group = 8, None
        rounded = self._choice.rounding(matrix, bits, group, self._importance.get(name.removesuffix(".weight")))
        return np.ascontiguousarray(rounded.T) if is_linear(name) else rounded


def main() -> None:
    options = _options()
    prepare(options.threads)
    print("### What rounding costs\n")
    print(_layer_table(options.rows), flush=True)
    with scratch_folder(options.scratch) as scratch:
        folder = local_folder(options.model_path) if options.model_path else _demonstration(scratch)
        print("\n" + _model_table(folder, options.data, options.calibrate), flush=True)
        if options.street:
            print("\n" + _street_table(folder, options.street), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", metavar="NAME|FOLDER", help="default: the demonstration's random model")
    parser.add_argument("--data", type=Path, help="conversations to measure with; default: built-in ones")
    parser.add_argument("--calibrate", type=Path, help="conversations to calibrate with; default: other built-in ones")
    parser.add_argument("--street", type=int, metavar="N", help="also llava eval street on N pictures")
    parser.add_argument("--rows", type=int, default=128, help="of the drawn layer's 11008 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where the demonstration is made, and removed afterwards")
    return parser.parse_args()


def _demonstration(scratch: Path) -> Path:
    from paddle_llava.demo.checkpoint import build

    build(scratch / "demo")
    return scratch / "demo"


def _layer_table(rows: int) -> str:
    """Of the gate of a 7B's MLP: the norm of its output's error, in percent of the output's."""
    random = np.random.default_rng(0)
    weight = (random.standard_t(5, (rows, 4096)) * 0.015).astype(np.float32)
    channels = random.lognormal(0, 0.5, 4096) * np.where(random.random(4096) < 0.002, 20, 1)
    inputs, others = (random.standard_normal((512, 4096)) * channels for _ in range(2))
    exact = others @ weight.T
    cells = []
    for choice in CHOICES:
        importance = np.square(inputs).mean(axis=0).astype(np.float32) if choice.calibrated else None
        bits, group = (8, None) if choice.formats.weights == "int8" else (4, choice.formats.group_size)
        rounded = choice.rounding(weight, bits, group, importance)
        of_weight = np.linalg.norm(rounded - weight) / np.linalg.norm(weight)
        of_output = np.linalg.norm(others @ rounded.T - exact) / np.linalg.norm(exact)
        cells.append([choice.name, f"{100 * of_weight:.2f}", f"{100 * of_output:.2f}"])
    note = f"A layer of the 7B's width, {rows} rows of it drawn; calibrated: errors weighed by importance, no factors."
    return f"{table(['', 'error of weights, %', 'error of output, %'], cells)}\n\n{note}"


def _model_table(folder: Path, data: Path | None, calibration_data: Path | None) -> str:
    pretrained = find_pretrained(folder)
    processor = LlavaProcessor.from_pretrained(folder)
    with pretrained.open_weights() as tensors:
        held_out = calibration_inputs(processor, data, seed=HELD_OUT)
        exact = _logits(tensors, pretrained.config, held_out)
        rows = [["float32", *_figures(exact, exact, held_out)]]
        for choice in CHOICES:
            forms = choice.formats.layers(pretrained.config.text)
            calibration = Calibration()
            if choice.calibrated:
                inside = [number for number, form in enumerate(forms) if form.name == "int4"]
                inputs = calibration_inputs(processor, calibration_data)
                group = choice.formats.group(pretrained.config.text)
                calibration = calibrate(pretrained.config, tensors, inputs, inside, group)
            rounded = Rounded(tensors, forms, choice, calibration)
            rows.append([choice.name, *_figures(exact, _logits(rounded, pretrained.config, held_out), held_out)])
    header = ["", "perplexity", "divergence", "logit error, %", "same token, %"]
    tokens = sum(map(len, exact))
    note = f"{folder.name}, {tokens} tokens of the answers in {len(held_out)} conversations; divergence in nats."
    return f"{table(header, rows)}\n\n{note}"


def _logits(tensors: TensorSource, config: LlavaConfig, held_out: list[dict[str, Any]]) -> list[np.ndarray]:
    """Of each conversation where an answer's tokens are to come, float32 [tokens, vocab_size]."""
    model = LlavaForConditionalGeneration.from_tensors(config, tensors)
    found = []
    with paddle.no_grad():
        for inputs in held_out:
            logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
            found.append(logits[0].numpy()[:-1][_targets(inputs) >= 0])
    return found


def _targets(inputs: dict[str, Any]) -> np.ndarray:
    return inputs["labels"][0, 1:]


def _figures(exact: list[np.ndarray], found: list[np.ndarray], held_out: list[dict[str, Any]]) -> list[str]:
    losses, divergences, same = [], [], []
    for before, after, inputs in zip(exact, found, held_out, strict=True):
        targets = _targets(inputs)
        wanted, likely = _log_softmax(before), _log_softmax(after)
        losses.append(-likely[np.arange(len(likely)), targets[targets >= 0]])
        divergences.append((np.exp(wanted) * (wanted - likely)).sum(axis=1))
        same.append(before.argmax(axis=1) == after.argmax(axis=1))
    logits, others = np.concatenate(exact), np.concatenate(found)
    spread = np.linalg.norm(logits - logits.mean(axis=1, keepdims=True))
    return [
        f"{np.exp(np.concatenate(losses).mean()):.3f}",
        f"{np.concatenate(divergences).mean():.5f}",
        f"{100 * np.linalg.norm(others - logits) / spread:.2f}",
        f"{100 * np.concatenate(same).mean():.2f}",
    ]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _street_table(folder: Path, pictures: int) -> str:
    """What `llava eval street` finds, by the OpenVINO engine."""
    from paddle_llava.evaluation.answering import Answerer
    from paddle_llava.evaluation.run import read_questions
    from paddle_llava.evaluation.tasks import load_task
    from paddle_llava.evaluation.tasks.files import Data
    from paddle_llava.opening import open_model

    questions = read_questions("street", Data((Path(str(pictures)),)))
    rows: dict[str, list[str]] = {}
    for weights in WEIGHTS[::-1]:
        engine, processor = open_model(str(folder), engine="openvino", weights=weights)
        predictions = [one for batch in Answerer(engine, processor).answer(questions) for one in batch]
        for name, value in load_task("street").score(predictions).figures.items():
            rows.setdefault(name, [name]).append(f"{100 * value:.2f}")
    return table(["`llava eval street`, %", *WEIGHTS[::-1]], list(rows.values()))


if __name__ == "__main__":
    main()
