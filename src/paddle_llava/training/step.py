"""One optimizer step, and an evaluation: losses, gradients, and what is not a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import paddle

from paddle_llava.allocator import keep_freed_memory
from paddle_llava.data.loader import Batches
from paddle_llava.errors import LlavaError
from paddle_llava.models.llava import LlavaNetwork
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.group_sharding import GroupSharding, with_picture
from paddle_llava.training.interruption import StopRequested
from paddle_llava.training.loss_scale import loss_scaler
from paddle_llava.training.optimizer import trainable
from paddle_llava.training.parallel import PeerLost, ShardedOptimizer, World
from paddle_llava.training.tensor_parallel import allow_split

Batch = Mapping[str, Any]
Say = Callable[[str], object]


class Learnt(NamedTuple):
    """What a step was: its `loss`, None when all of it was skipped, and `counts` over all processes, the place in the
    data after it, whether an epoch ended in it, and how many batches and records were skipped."""

    loss: float | None
    counts: dict[str, float]
    position: list[int]
    epoch_ended: bool
    skipped: int


class Stepper:
    """Takes optimizer steps; `parameters` are those that learn, by name."""

    def __init__(
        self,
        config: TrainingConfig,
        model: LlavaNetwork,
        optimizer: paddle.optimizer.Optimizer,
        dtype: str,
        world: World,
        say: Say,
    ) -> None:
        self.config, self.model, self.optimizer = config, model, optimizer
        self.dtype, self.world, self.say = dtype, world, say
        self.parameters = trainable(model)
        keep_freed_memory()
        self.scaler = loss_scaler(dtype)
        shards = bool(config.sharding) and world.replicas > 1
        self.sharded = ShardedOptimizer(optimizer, self.parameters, world) if shards and not world.in_step else None
        self.group: GroupSharding | None = None
        if world.tensor_parallel > 1:
            allow_split(optimizer)

    def share_out(self) -> None:
        """Share parameters or gradients out over the processes, if the run does; to be called once all are loaded."""
        if self.world.in_step:
            self.group = GroupSharding(self.config, self.model, self.optimizer, self.scaler, self.world)

    def step(self, step: int, stream: Iterator[Batch], stop_requested: Callable[[], bool]) -> Learnt | None:
        """Take step number `step` (from 1); None when a stop was requested in it, which leaves all as it was before.

        Raises `LlavaError` for records that cannot be used or whose loss is no number, unless such are skipped, and
        when the weights are no longer numbers.
        """
        config, world = self.config, self.world
        paddle.seed(_step_seed(config.seed, step - 1, world.replica))
        accumulated = config.gradient_accumulation_steps
        micro_batches = world.together(lambda: [next(stream) for _ in range(accumulated)])
        (targets,) = world.sum(sum(batch["num_targets"] for batch in micro_batches))
        loss, lost, stopping = 0.0, list[Batch](), False
        for batch in micro_batches:
            stopping = stopping or world.any(stop_requested())
            if stopping:
                break
            advice = "set recompute, lower max_length or per_device_train_batch_size, or share more out with sharding"
            with self._enough_memory(step, f"{_records(batch)}; {advice}"):
                with _autocast(self.dtype, config.fp16_opt_level):
                    micro_loss = self._loss(batch) / targets
                value = float(micro_loss)
                if self.group is not None:
                    world.together(partial(self._refuse, [] if math.isfinite(value) else [batch], step, "loss"))
                    micro_loss = micro_loss * world.size  # of which Paddle takes the mean
                if math.isfinite(value):
                    self.scaler.scale(micro_loss).backward()
                    loss += value
                else:
                    lost.append(batch)
        tokens = sum(batch["input_ids"].size for batch in micro_batches)
        useful = sum(batch["num_tokens"] for batch in micro_batches)
        lost_targets = sum(batch["num_targets"] for batch in lost)
        stops, loss, lost_targets, tokens, useful = world.sum(float(stopping), loss, lost_targets, tokens, useful)
        if stops:
            if self.group is None:
                self.optimizer.clear_grad(set_to_zero=False)
            return None
        world.together(lambda: self._refuse(lost, step, "loss"))
        with self._enough_memory(step, "the optimizer's state; use lora, or share it out with sharding", begun=True):
            norm = self.update(lost_targets / targets if targets else 1.0)
        if not math.isfinite(norm):
            world.together(lambda: self._refuse(micro_batches, step, "gradient"))
            lost = micro_batches
        skipped = self._report_skipped(lost, micro_batches, step)
        kept = targets - lost_targets
        counts = {"tokens": tokens, "useful": useful, "targets": kept, "grad_norm": norm if math.isfinite(norm) else 0}
        position, ended = list(micro_batches[-1]["state"]), any(batch["ends_epoch"] for batch in micro_batches)
        return Learnt(loss * targets / kept if kept else None, counts, position, ended, skipped)

    def update(self, lost: float = 0.0) -> float:
        """Apply the gradients of all processes, clipped, unless there are none; returns their norm before clipping, 0
        where Paddle shares them out and clips.

        `lost` is the share of the step's targets that gave no gradient; the others then weigh more.
        """
        if self.group is not None:
            self.group.step()
            return 0.0
        self.world.sum_gradients(list(self.parameters.values()))
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = 0.0
        if lost < 1 and gradients:
            if lost:
                _scale(gradients, 1 / (1 - lost))
            norm = _norm(gradients) / float(self.scaler._scale if self.scaler.is_enable() else 1)
            if math.isfinite(norm) and 0 < self.config.max_grad_norm < norm:
                _scale(gradients, self.config.max_grad_norm / norm)
            # The scaler drops a step whose gradients overflow, and lowers its scale; below 1 that cannot be why.
            if math.isfinite(norm) or (self.scaler.is_enable() and float(self.scaler._scale) > 1):
                if self.sharded is not None:
                    self.sharded.step()
                else:
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                norm = norm if math.isfinite(norm) else 0.0
        self.optimizer.clear_grad(set_to_zero=False)
        return norm

    @contextmanager
    def _enough_memory(self, step: int, what: str, *, begun: bool = False) -> Iterator[None]:
        """Raises `LlavaError` that names `what` the device's memory is not enough for; with `begun` some parameters may
        have taken the step, and others not."""
        try:
            yield
        except MemoryError:
            self.optimizer.clear_grad(set_to_zero=False)
            alone = self.world.size == 1  # or others wait for this process's gradients
            error = LlavaError if alone and not begun else PeerLost
            raise error(f"step {step}: the memory is not enough for {what}") from None

    def is_sound(self) -> bool:
        """Whether what learns are numbers still, in all processes; all of them must ask."""
        if self.group is not None:
            self.group.gather_parameters()
        return not self.world.any(not self._is_sound_here())

    def _is_sound_here(self) -> bool:
        # Stage 3 of sharding frees some between the calls that need them.
        held = [parameter for parameter in self.parameters.values() if parameter._is_initialized()]
        return all(bool(paddle.isfinite(parameter).all()) for parameter in held)

    def _loss(self, batch: Batch) -> paddle.Tensor:
        if self.group is None:
            return self.model.loss(*_loss_inputs(batch))
        return self.group.loss(*_loss_inputs(with_picture(batch, self.model)))

    def _refuse(self, lost: Sequence[Batch], step: int, what: str) -> None:
        """Raise `LlavaError` naming the records in `lost` whose loss or gradient is no number, unless such are skipped
        and the weights are sound."""
        if not lost:
            return
        records = ", ".join(map(_records, lost))
        if not self._is_sound_here():
            raise LlavaError(
                f"step {step}: the weights are no longer numbers, the training has diverged; "
                "lower learning_rate and go on from an earlier checkpoint"
            )
        if self.config.on_bad_sample == "error" or self.group is not None:
            raise LlavaError(
                f"step {step}: the {what} is not a number for {records}; on_bad_sample: skip leaves such records out"
                + (f", but not with sharding: {self.config.sharding}" if self.group is not None else "")
            )

    def _report_skipped(self, lost: Sequence[Batch], micro_batches: Sequence[Batch], step: int) -> int:
        """Say what was skipped; returns how much it was in all processes."""
        reasons = [f"{_records(batch)}: no finite loss in step {step}" for batch in lost]
        reasons += [reason for batch in micro_batches for reason in batch["skipped"]]
        for reason in self.world.told(reasons):
            self.say(f"skipped {reason}")
        (skipped,) = self.world.sum(len(reasons))
        return int(skipped)


@paddle.no_grad()
def evaluate(
    model: LlavaNetwork,
    batches: Batches,
    dtype: str,
    config: TrainingConfig,
    world: World = World(),  # noqa: B008 (frozen)
    stop_requested: Callable[[], bool] = lambda: False,
    say: Say = print,
) -> float:
    """The mean loss over all targets of one pass through `batches`, which the processes share; NaN without any.

    Records that cannot be used, or whose loss is no number, are skipped and said, or raise `LlavaError`, as
    `on_bad_sample` has it. Raises `StopRequested` when a stop was requested meanwhile in any process.
    """
    model.eval()
    stopped = False

    def own() -> tuple[float, int, list[str]]:
        nonlocal stopped
        loss, targets, skipped = 0.0, 0, list[str]()
        with closing(iter(batches)) as stream:
            for number, batch in enumerate(stream):
                if stopped := world.any(stop_requested()):
                    break
                if number % world.replicas != world.replica:
                    continue
                skipped += batch["skipped"]
                if not batch["num_targets"]:
                    continue
                value = _loss_of(model, batch, dtype, config, world)
                if math.isfinite(value):
                    loss, targets = loss + value, targets + batch["num_targets"]
                else:
                    skipped.append(f"{_records(batch)}: no finite loss in an evaluation")
        return loss, targets, skipped

    own_loss, own_targets, skipped = world.together(own)
    loss, targets, stops = world.sum(own_loss, own_targets, float(stopped))
    model.train()
    if stops:
        raise StopRequested
    reasons = world.told(skipped)
    if reasons and config.on_bad_sample == "error":
        raise LlavaError(f"{reasons[0]}; on_bad_sample: skip leaves such records out")
    for reason in reasons:
        say(f"skipped {reason}")
    return loss / targets if targets else math.nan


def _loss_of(model: LlavaNetwork, batch: Batch, dtype: str, config: TrainingConfig, world: World) -> float:
    try:
        with _autocast(dtype, config.fp16_opt_level):
            return float(model.loss(*_loss_inputs(batch)))
    except MemoryError:
        error = PeerLost if world.computes_together else LlavaError
        raise error(
            f"evaluation: the memory is not enough for {_records(batch)}; lower per_device_eval_batch_size"
        ) from None


def _loss_inputs(batch: Batch) -> tuple[Any, ...]:
    """What `LlavaNetwork.loss` takes."""
    pixels = batch.get("pixel_values")
    return (
        paddle.to_tensor(batch["input_ids"]),
        paddle.to_tensor(batch["labels"]),
        paddle.to_tensor(batch["position_ids"]),
        _lengths(batch["segment_ids"]),
        None if pixels is None else paddle.to_tensor(pixels),
        None if pixels is None else batch["image_sizes"].tolist(),
    )


def _lengths(segment_ids: np.ndarray) -> list[list[int]]:
    """The lengths of the samples of each row, in order; padding, segment 0, is the last."""
    lengths = []
    for row in segment_ids:
        starts = np.flatnonzero(np.diff(row)) + 1
        lengths.append(np.diff(np.concatenate([[0], starts, [len(row)]])).tolist())
    return lengths


def _norm(gradients: Sequence[paddle.Tensor]) -> float:
    """Of all `gradients` together, of those split over processes over all their parts."""
    return math.sqrt(float(paddle.add_n([_square(gradient.astype("float32")) for gradient in gradients])))


def _square(gradient: paddle.Tensor) -> paddle.Tensor:
    if gradient.is_dist():  # whose product with itself would first be gathered
        return paddle.square(gradient).sum()
    return paddle.dot(gradient.flatten(), gradient.flatten())


@paddle.no_grad()
def _scale(gradients: Sequence[paddle.Tensor], factor: float) -> None:
    for gradient in gradients:
        gradient.scale_(factor)


def _autocast(dtype: str, level: str) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == "float32" else paddle.amp.auto_cast(dtype=dtype, level=level)


def _step_seed(seed: int, step: int, replica: int) -> int:
    return ((seed * 1_000_003 + step) * 1_009 + replica) % 2**64  # more Paddle does not take


def _records(batch: Batch) -> str:
    return ", ".join(name for row in batch["records"] for name in row)
