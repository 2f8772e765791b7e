"""What a run is going to do, said before its first step."""

from __future__ import annotations

from dataclasses import dataclass

from paddle import nn

from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import PARTS, part_of

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Plan:
    """Parameters by part (learning and in all), steps, and what they take."""

    parameters: dict[str, tuple[int, int]]
    steps: int
    sequences_a_step: int
    tokens_a_step: int
    weight_bytes: int
    training_bytes: int

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        learning = sum(learn for learn, _ in self.parameters.values())
        total = sum(all_ for _, all_ in self.parameters.values())
        parts = [
            f"  {part:<16}{all_ / 1e6:>12,.2f} M   {'learns' if learn == all_ else f'{learn / 1e6:,.2f} M learn'}"
            if learn
            else f"  {part:<16}{all_ / 1e6:>12,.2f} M   frozen"
            for part, (learn, all_) in self.parameters.items()
        ]
        return [
            f"{learning / 1e6:,.2f} M of {total / 1e6:,.2f} M parameters learn:",
            *parts,
            f"{self.steps:,} steps of {self.sequences_a_step} sequences, at most {self.tokens_a_step:,} tokens each",
            f"memory: {self.weight_bytes / 2**30:.1f} GiB of weights, {self.training_bytes / 2**30:.1f} GiB of "
            "gradients and optimizer state, and the activations",
        ]


def make_plan(model: nn.Layer, config: TrainingConfig, steps: int, world_size: int) -> Plan:
    """Count `model`'s parameters; the optimizer holds two float32 moments of each that learns, and a float32
    master of each 16-bit one."""
    parameters = dict.fromkeys(PARTS, (0, 0))
    weight_bytes = training_bytes = 0
    for name, parameter in model.named_parameters():
        part, size = part_of(name), int(parameter.size)
        width = _BYTES[str(parameter.dtype).rpartition(".")[2]]
        learns = not parameter.stop_gradient
        learning, total = parameters[part]
        parameters[part] = (learning + size * learns, total + size)
        weight_bytes += size * width
        training_bytes += learns * size * (width + 8 + (4 if width == 2 else 0))
    sequences = config.per_device_train_batch_size * config.gradient_accumulation_steps * world_size
    present = {part: counts for part, counts in parameters.items() if counts[1]}
    return Plan(present, steps, sequences, sequences * config.max_length, weight_bytes, training_bytes)
