"""Eye and tongue meet: the projector learns to say of a cell's feature what the tongue's reader says of its contents.

It is a start for `llava pretrain`, which goes on from there with texts and needs no throw-away layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.demo.cells import WIDTH, Cells, as_numbers
from paddle_llava.demo.eye import Pictures
from paddle_llava.demo.loop import Progress, Say, fit
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.training.checkpoint import PARAMETERS, checkpoint_folders


class Alignment(nn.Layer):
    """The projector under training, between a tower and a reader that are not."""

    def __init__(self, model: LlavaForConditionalGeneration, reader: nn.Linear) -> None:
        super().__init__()
        self.projector = model.projector
        self._fixed = (model.vision_tower, reader)  # in a tuple, so that they are no part of what learns

    def difference(self, batch: dict[str, Any]) -> Tensor:
        """Of what both say, squared, [pictures * cells]."""
        tower, reader = self._fixed
        cells = Cells(*(batch[name].reshape(-1, *batch[name].shape[2:]) for name in Cells._fields))
        with paddle.no_grad():
            features = tower(paddle.to_tensor(batch["pixel_values"]))[:, 1:].flatten(0, 1)
            wanted = reader(paddle.to_tensor(as_numbers(cells)))
        return (self.projector(features) - wanted).square().mean(-1)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Cells of things count as much as the background, which is most of a picture."""
        difference = self.difference(batch)
        things = paddle.to_tensor((batch["kind"] > 0).ravel().astype("float32"))
        return difference.mean() + (difference * things).sum() / things.sum().clip(1.0)

    def judge(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """The mean squared difference of cells that speak for a thing."""
        found = [
            float(self.difference(batch)[paddle.to_tensor(batch["anchor"].ravel() > 0)].mean()) for batch in batches
        ]
        return {"difference": sum(found) / len(found)}


def join(
    eye: Path,
    tongue: Path,
    base: Path,
    folder: Path,
    result: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    say: Say,
    progress: Progress | None = None,
) -> bool:
    """Write the eye's tower, the tongue's decoder and a projector that learnt for `steps` as a checkpoint to `result`.

    `eye`, `tongue` and `folder` hold the checkpoints of these trainings; what was thrown away for them is left out.
    False when it was stopped before the end.
    """
    model, processor = LlavaForConditionalGeneration.from_pretrained(base), LlavaProcessor.from_pretrained(base)
    reader = nn.Linear(WIDTH, model.config.text.hidden_size)
    parameters = dict(model.named_parameters()) | {f"reader.{name}": it for name, it in reader.named_parameters()}
    for part in (eye, tongue):
        file = SafetensorsFile(checkpoint_folders(part)[-1] / PARAMETERS)
        for name in file.names():
            if name in parameters:
                parameters[name].set_value(file.read(name))
        file.close()
    alignment = Alignment(model, reader)
    for parameter in alignment.parameters():
        parameter.stop_gradient = False
    held_out = [Pictures(processor, 50, "heldout").batch(step) for step in range(4)]
    done = fit(
        alignment,
        Pictures(processor, batch_size, seed=2),
        alignment.loss,
        folder,
        steps=steps,
        learning_rate=learning_rate,
        judge=lambda: alignment.judge(held_out),
        judge_every=min(250, steps),
        say=say,
        progress=progress,
    )
    if done:
        processor.save_pretrained(result)
        model.save_pretrained(result)  # last, for its config.json says that the stage is done
    return done
