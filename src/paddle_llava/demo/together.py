"""Eye, projector and tongue learn on together, from pictures drawn without end.

The same questions as the tongue's own, about what the eye really sees; and beside their loss the two of the trainings
apart: a throw-away head reads the cells' contents off the features, and guided heads are told where to look. So each
part goes on learning what it was taught alone, now with the other's mistakes before it. Cells are told of more pictures
than are asked about: that costs no decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

from paddle_llava.demo.eye import SEEDS_A_STEP, Eye, draw_sized, seen
from paddle_llava.demo.kinds import Split
from paddle_llava.demo.loop import Progress, Say, fit
from paddle_llava.demo.tongue import TELLING, Questions, Tongue, tells
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.training.parallel import World

FIRST_SEED = 3  # those before are the eye's, the tongue's and the projector's
HEAD_ALONE = 100  # batches whose cells teach only the head, which is new


class Lessons:
    """Batches of pictures, questions about the first of them, and what is in the cells of all."""

    def __init__(
        self, processor: LlavaProcessor, asked: int, watched: int, split: Split = "train", seed: int = 0
    ) -> None:
        """A step asks about `asked` pictures, or tells texts about twice as many; `watched` more are only looked at, in
        training every other one `unnamed`."""
        self.questions = Questions(processor, asked, split)
        self.processor, self.asked, self.watched, self.split, self.seed = processor, asked, watched, split, seed

    def batch(self, step: int) -> dict[str, Any]:
        """What `Questions.about` and `seen` give, `asked`, the number of pictures asked about, and `step`."""
        telling, side = tells(step), self.processor.config.vision.image_size
        asked = self.asked * (2 if telling else 1)
        first = (self.seed * 1_000_000 + step) * SEEDS_A_STEP
        seeds = range(first, first + asked + self.watched)
        unnamed = [self.split == "train" and number >= asked and number % 2 == 1 for number in range(len(seeds))]
        scenes = [draw_sized(seed, side, self.split, it) for seed, it in zip(seeds, unnamed, strict=True)]
        told, about = self.questions.about(scenes[:asked], seeds[:asked], telling=telling)
        return told | seen([*about, *scenes[asked:]], self.processor) | {"asked": len(about), "step": step}


class Together(nn.Layer):
    """The whole model under training, and the eye's throw-away head."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.projector
        self.eye = Eye(model.vision_tower, model.config.vision.hidden_size)
        self.tongue = Tongue(model)

    def image_features(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """What the decoder sees of the pictures that it is asked about, [cells of all, hidden_size]."""
        return self.projector(features[: batch["asked"]].flatten(0, 1))

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.loss_of(self.eye.features(batch), batch)

    def loss_of(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """Of the answers to what is asked, and of what the head reads off all `features` [pictures, cells, …]."""
        answers = self.tongue.loss_of(self.image_features(features, batch), batch)
        seen = features.detach() if batch["step"] < HEAD_ALONE else features
        return answers + self.eye.loss_of(seen, batch)

    def judge(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """What `Eye.judge` gives, each name after `eye `, and what `Tongue.judge` gives."""
        asked = self.tongue.judge(batches, lambda batch: self.image_features(self.eye.features(batch), batch))
        return {f"eye {name}": value for name, value in self.eye.judge(batches).items()} | asked


def learn_together(
    folder: Path,
    start: Path,
    result: Path,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    asked: int,
    watched: int,
    say: Say,
    progress: Progress | None = None,
) -> bool:
    """Train the checkpoint `start` for `steps`, with pictures from `seed`, and write it to `result`; False when it was
    stopped before the end.

    In each process of `paddle.distributed` alike; a step is of a batch from each.
    """
    world = World.join(in_step=True)
    model, processor = LlavaForConditionalGeneration.from_pretrained(start), LlavaProcessor.from_pretrained(start)
    paddle.seed(1)
    together = Together(model)
    for name, parameter in together.named_parameters():
        parameter.stop_gradient = "post_layernorm" in name or "tongue.reader" in name
    judged = range(1000, 1000 + 2 * TELLING) if world.rank == 0 else ()
    held_out = [Lessons(processor, 8, 16, "heldout").batch(step) for step in judged]
    done = fit(
        together,
        Lessons(processor, asked, watched, seed=FIRST_SEED + seed),
        together.loss,
        folder,
        steps=steps,
        learning_rate=learning_rate,
        judge=lambda: together.judge(held_out),
        judge_every=min(250, steps),
        say=say,
        progress=progress,
        world=world,
    )
    if done and world.rank == 0:
        processor.save_pretrained(result)
        model.save_pretrained(result)  # last, for its config.json says that the stage is done
    return done
