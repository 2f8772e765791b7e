"""What a run is going to do, said before its first step."""

from __future__ import annotations

from dataclasses import dataclass

from paddle import nn

from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import PARTS, part_of
from paddle_llava.training.parallel import World, here

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Plan:
    """Parameters by part (learning and in all), steps, and what they take of each process.

    How many steps the epochs are is `estimated` where samples are packed: from how the first of them fit.
    """

    parameters: dict[str, tuple[int, int]]
    steps: int
    estimated: bool
    sequences_a_step: int
    tokens_a_step: int
    weight_bytes: int
    training_bytes: int

    def lines(self) -> list[str]:
        """The plan as a person reads it, in columns."""
        learning = sum(learn for learn, _ in self.parameters.values())
        total = sum(in_all for _, in_all in self.parameters.values())
        sequences = "sequence" if self.sequences_a_step == 1 else "sequences"
        return [
            f"plan        {_millions(learning)} of {_millions(total)} parameters learn",
            *(
                f"  {part:<16}{_millions(in_all):>12}   {_said(learn, in_all)}"
                for part, (learn, in_all) in self.parameters.items()
            ),
            f"  {'steps':<16}{self.steps:>12,}   {self.sequences_a_step:,} {sequences} each, at most "
            f"{self.tokens_a_step:,} tokens{'; as many as the epochs have, about' if self.estimated else ''}",
            f"  {'memory':<16}{_gib(self.weight_bytes + self.training_bytes):>12}   {_gib(self.weight_bytes)} weights, "
            f"{_gib(self.training_bytes)} gradients and optimizer; activations come on top",
        ]


def _said(learn: int, in_all: int) -> str:
    if not learn:
        return "frozen"
    return "learns" if learn == in_all else f"{_millions(learn)} learn"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def make_plan(model: nn.Layer, config: TrainingConfig, steps: int, world: World) -> Plan:
    """Count `model`'s parameters, and what this process will hold of them once `sharding` has shared out its part.

    The optimizer holds two float32 moments of each that learns, and a float32 master of each 16-bit one.
    """
    parameters = dict.fromkeys(PARTS, (0, 0))
    weights = gradients = slots = 0
    for name, parameter in model.named_parameters():
        part, size = part_of(name), int(parameter.size)
        width = _BYTES[str(parameter.dtype).rpartition(".")[2]]
        learns = not parameter.stop_gradient
        learning, total = parameters[part]
        parameters[part] = (learning + size * learns, total + size)
        held = int(here(parameter).size)
        weights += held * width
        gradients += learns * held * width
        slots += learns * held * (8 + (4 if width == 2 else 0))
    stage = ("", "stage1", "stage2", "stage3").index(config.sharding)
    slots //= world.replicas if stage >= 1 else 1
    gradients //= world.replicas if stage >= 2 else 1
    weights //= world.replicas if stage >= 3 else 1
    sequences = config.per_device_train_batch_size * config.gradient_accumulation_steps * world.replicas
    present = {part: counts for part, counts in parameters.items() if counts[1]}
    estimated = config.mixtoken and config.max_steps <= 0
    return Plan(present, steps, estimated, sequences, sequences * config.max_length, weights, gradients + slots)
