"""The training loop, in plain sight.

One recipe pretrains the projector and fine-tunes, whole or with LoRA; what differs is what learns. A step's loss is the
mean over all target tokens of all its micro-batches on all devices, so that accumulating or adding devices changes no
gradient. Every random number of a step comes from the seed and the step's number: a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddle_llava.checkpoints.adapter import write_adapter
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.data.batches import BatchSettings
from paddle_llava.data.loader import Batches, Position
from paddle_llava.data.mixture import Mixture
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.models.lora import add_lora
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import Template
from paddle_llava.training.checkpoint import TrainerState, checkpoint_folders, load_checkpoint, save_checkpoint
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.log import TrainingLog
from paddle_llava.training.optimizer import build_optimizer, select_trainable, trainable
from paddle_llava.training.parallel import ShardedOptimizer, World
from paddle_llava.training.plan import Plan, make_plan
from paddle_llava.training.report import write_report
from paddle_llava.training.result import BEST, adapter_of, clear_result, finished_steps, take_adapter, write_result

Batch = Mapping[str, Any]
Say = Callable[[str], object]


def train(
    config: TrainingConfig,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    template: Template,
    *,
    dtype: str = "float32",
    world: World = World(),  # noqa: B008 (frozen)
    say: Say = print,
) -> Path:
    """Train `model` as `config` says; returns the folder of the result.

    The result is a whole `hf` folder, or with `lora` an adapter in PEFT's layout, and `report.html` in both cases.
    Checkpoints go to `output_dir/checkpoint-STEP`; the newest one there is continued unless `overwrite_output_dir`, and
    a run that is finished is left as it is. Conversations are told in `template` unless their data file names another.
    `dtype` is what products are computed in.

    Raises `LlavaError` for data that cannot be used, for a loss that is no number, naming the records, and when SIGTERM
    has come: then a checkpoint is saved first.
    """
    return _Run(config, model, processor, template, dtype, world, say).train()


class _Run:
    """What the parts of a run share."""

    def __init__(
        self,
        config: TrainingConfig,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        template: Template,
        dtype: str,
        world: World,
        say: Say,
    ) -> None:
        self.config, self.model, self.processor, self.template = config, model, processor, template
        self.dtype, self.world, self.say = dtype, world, say
        self.output_dir = Path(config.output_dir).expanduser()
        self.evaluates = config.do_eval or config.evaluation_strategy != "no"
        if config.load_best_model_at_end and config.evaluation_strategy == "no":
            raise LlavaError("load_best_model_at_end needs an evaluation_strategy, steps or epoch, to know the best")
        paddle.seed(config.seed)
        _prepare(model, config)

    def train(self) -> Path:
        config, output_dir = self.config, self.output_dir
        eval_batches = self._batches("eval") if self.evaluates else None
        if not config.do_train:
            if eval_batches is None:
                raise LlavaError("do_train and do_eval are both false: there is nothing to do")
            with TrainingLog(output_dir, 0, 0, every=1, live=False, quiet=self.world.rank > 0) as log:
                self._evaluate(eval_batches, 0, log)
            return output_dir
        batches = self._batches("train")
        total = _total_steps(config, batches)
        if self._is_finished(total):
            return output_dir
        self.optimizer = build_optimizer(self.model, config, total)
        self.scaler = paddle.amp.GradScaler(enable=self.dtype == "float16", init_loss_scaling=2.0**15)
        self.parameters = trainable(self.model)
        self.sharded = (
            ShardedOptimizer(self.optimizer, self.parameters, self.world)
            if config.sharding and self.world.size > 1
            else None
        )
        plan = make_plan(self.model, config, total, self.world.size)
        self.say("\n".join(plan.lines()))
        state = self.state = self._resume()
        batches.start = Position(*state.position)
        schedule = self.optimizer._learning_rate
        schedule.step(state.step)
        saved_step = state.step

        quiet = self.world.rank > 0
        with (
            closing(iter(batches)) as stream,
            TrainingLog(
                output_dir,
                total,
                state.step,
                every=config.logging_steps,
                live=not config.disable_tqdm,
                quiet=quiet,
                report_to=config.report_to,
            ) as log,
            _stop_requests(launched=self.world.size > 1) as stop_requested,
        ):
            while state.step < total:
                try:
                    learnt = self._step(stream, stop_requested)
                except KeyboardInterrupt:
                    self.say(f"interrupted in step {state.step + 1}; {_way_on(saved_step)}")
                    raise
                if learnt is None:
                    if state.step > saved_step:
                        self._save(output_dir, keep=config.save_total_limit)
                    self._report(plan, total, with_predictions=False)
                    raise LlavaError(f"stopped by SIGTERM after step {state.step}; {_way_on(state.step)}")
                micro_batches, loss, counts = learnt
                learning_rate = self.optimizer.get_lr()
                schedule.step()
                state.step += 1
                previous_epoch = state.position[0] if state.position else 0
                state.position = list(micro_batches[-1]["state"])
                log.step(state.step, loss, learning_rate, counts)
                epoch_ended = state.position[0] != previous_epoch
                last = state.step == total
                with log.aside():
                    if eval_batches is not None and (
                        last or _due(config.evaluation_strategy, config.eval_steps, state.step, epoch_ended)
                    ):
                        eval_loss = self._evaluate(eval_batches, state.step, log)
                        if config.load_best_model_at_end and (state.best_loss is None or eval_loss < state.best_loss):
                            state.best_loss = eval_loss
                            self._save(output_dir / BEST, keep=1)
                    due = _due(config.save_strategy, config.save_steps, state.step, epoch_ended)
                    if due or (last and config.save_strategy != "no"):
                        self._save(output_dir, keep=config.save_total_limit)
                        saved_step = state.step
        self._finish(plan, total)
        return output_dir

    def _step(
        self, stream: Iterator[Batch], stop_requested: Callable[[], bool]
    ) -> tuple[list[Batch], float, dict[str, float]] | None:
        """One optimizer step: its batches, loss and counts over all processes; None when SIGTERM has come in it, which
        leaves all as it was before the step."""
        config, world, step = self.config, self.world, self.state.step + 1
        paddle.seed(_step_seed(config.seed, step - 1, world.rank))
        accumulated = config.gradient_accumulation_steps
        micro_batches = world.together(lambda: [next(stream) for _ in range(accumulated)])
        (targets,) = world.sum(sum(batch["num_targets"] for batch in micro_batches))
        loss, lost, stopping = 0.0, list[Batch](), False
        for batch in micro_batches:
            stopping = stopping or stop_requested()
            if stopping:
                break
            with _autocast(self.dtype, config.fp16_opt_level):
                micro_loss = _loss(self.model, batch) / targets
            value = float(micro_loss)
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
            self.optimizer.clear_grad(set_to_zero=False)
            return None
        world.together(lambda: self._refuse(lost, step, "loss"))
        norm = self._update(targets, lost_targets)
        if not math.isfinite(norm):
            world.together(lambda: self._refuse(micro_batches, step, "gradient"))
            lost = micro_batches
        self._count_skipped(lost, micro_batches)
        kept = targets - lost_targets
        counts = {"tokens": tokens, "useful": useful, "targets": kept, "grad_norm": norm if math.isfinite(norm) else 0}
        return micro_batches, loss * targets / max(kept, 1), counts

    def _update(self, targets: float, lost_targets: float) -> float:
        """Apply the gradients of all processes, unless there are none; returns their norm before clipping."""
        self.world.sum_gradients(list(self.parameters.values()))
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = 0.0
        if lost_targets < targets and gradients:
            share = (targets - lost_targets) / targets
            if share < 1:
                with paddle.no_grad():
                    for gradient in gradients:
                        gradient.scale_(1 / share)
            norm = _norm(gradients) / float(self.scaler._scale if self.scaler.is_enable() else 1)
            # The scaler drops a step whose gradients overflow, and lowers its scale.
            if math.isfinite(norm) or self.scaler.is_enable():
                if self.sharded is not None:
                    self.sharded.step()
                else:
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                norm = norm if math.isfinite(norm) else 0.0
        self.optimizer.clear_grad(set_to_zero=False)
        return norm

    def _refuse(self, lost: Sequence[Batch], step: int, what: str) -> None:
        """Raise `LlavaError` naming the records in `lost` whose loss or gradient is no number, unless such are skipped
        and the weights are sound."""
        if not lost:
            return
        records = ", ".join(map(_records, lost))
        if not all(bool(paddle.isfinite(parameter).all()) for parameter in self.parameters.values()):
            raise LlavaError(
                f"step {step}: the weights are no longer numbers, the training has diverged; "
                "lower learning_rate and go on from an earlier checkpoint"
            )
        if self.config.on_bad_sample == "error":
            raise LlavaError(
                f"step {step}: the {what} is not a number for {records}; on_bad_sample: skip leaves such records out"
            )

    def _count_skipped(self, lost: Sequence[Batch], micro_batches: Sequence[Batch]) -> None:
        reasons = [f"{_records(batch)}: no finite loss in step {self.state.step + 1}" for batch in lost]
        reasons += [reason for batch in micro_batches for reason in batch["skipped"]]
        for reason in reasons:
            self.say(f"skipped {reason}")
        (skipped,) = self.world.sum(len(reasons))
        self.state.skipped += int(skipped)

    def _evaluate(self, batches: Batches, step: int, log: TrainingLog) -> float:
        loss = evaluate(self.model, batches, self.dtype, self.config, self.world)
        log.write({"step": step, "eval_loss": round(loss, 6)})
        self.say(f"evaluation after step {step}: loss {loss:.4f}" if step else f"evaluation: loss {loss:.4f}")
        return loss

    def _is_finished(self, total: int) -> bool:
        config, done = self.config, finished_steps(self.output_dir)
        if config.overwrite_output_dir or config.resume_from_checkpoint is not None or done < total:
            return False
        self.say(
            f"{self.output_dir}: finished already, after {done} steps, and left as it is; overwrite_output_dir trains "
            "anew, more num_train_epochs or max_steps go on"
        )
        return True

    def _resume(self) -> TrainerState:
        config, fixed = self.config, _fixed(self.config)
        if config.resume_from_checkpoint is None and config.overwrite_output_dir:
            if self.world.rank == 0 and (removed := clear_result(self.output_dir, checkpoints=True)):
                self.say(f"overwrite_output_dir: removed {removed} checkpoints of an earlier run")
            return TrainerState(fixed=fixed)
        if config.resume_from_checkpoint is not None:
            folder = Path(config.resume_from_checkpoint).expanduser()
        else:
            if not (found := checkpoint_folders(self.output_dir)):
                if self.world.rank == 0:
                    clear_result(self.output_dir, checkpoints=False)
                return TrainerState(fixed=fixed)
            folder = found[-1]
        state = self._load(folder)
        if self.world.rank == 0:
            clear_result(self.output_dir, checkpoints=False)
        self.say(f"going on from {folder}, after step {state.step}")
        return state

    def _load(self, folder: Path) -> TrainerState:
        state = load_checkpoint(folder, self.model, self.optimizer, _fixed(self.config))
        if self.sharded is not None:
            self.sharded.drop_others()
        return state

    def _save(self, folder: Path, keep: int | None) -> None:
        """Write a checkpoint from the first process; all hold the same parameters."""
        config = self.config
        if self.sharded is not None:
            self.sharded.gather()

        def save() -> None:
            if self.world.rank == 0:
                also = (
                    (lambda to: write_adapter(to, adapter_of(self.model, config), self.model.config))
                    if (config.lora)
                    else None
                )
                save_checkpoint(folder, self.model, self.optimizer, self.state, keep=keep, also=also)

        self.world.together(save)
        if self.sharded is not None:
            self.sharded.drop_others()

    def _finish(self, plan: Plan, total: int) -> None:
        best = checkpoint_folders(self.output_dir / BEST) if self.config.load_best_model_at_end else []
        if best:
            step = self._load(best[-1]).step
            self.say(f"the best model, of step {step}, is put back: eval loss {self.state.best_loss:.4f}")

        def write() -> None:
            if self.world.rank == 0:
                write_result(self.output_dir, self.model, self.processor, self.config, total)

        self.world.together(write)
        if self.state.skipped:
            self.say(f"{self.state.skipped} records or batches could not be used and were skipped")
        self._report(plan, total, with_predictions=True)

    def _report(self, plan: Plan, total: int, with_predictions: bool) -> None:
        """Write `report.html`; that it cannot be is said, and nothing else is lost by it."""
        if self.world.rank:
            return
        split = "eval" if self.evaluates else "train"
        samples = Mixture.from_entries(self.config.dataset[split], self.template) if with_predictions else None
        try:
            path = write_report(self.config, plan, self.state, total, self.model, self.processor, samples)
            self.say(f"report: {path}")
        except (LlavaError, OSError) as error:
            self.say(f"report.html could not be written: {error}")

    def _batches(self, split: str) -> Batches:
        config, training = self.config, split == "train"
        settings = BatchSettings(
            batch_size=config.per_device_train_batch_size if training else config.per_device_eval_batch_size,
            max_length=config.max_length,
            seed=config.seed,
            packing=config.mixtoken,
            group_by_modality_length=config.group_by_modality_length,
            shuffle=training,
            on_bad_sample=config.on_bad_sample,
        )
        mixture = Mixture.from_entries(config.dataset.get(split), self.template, where=f"dataset.{split}")
        return Batches(
            mixture,
            self.processor,
            settings,
            epochs=None if training else 1,
            # Each process sees all of the evaluation's batches and takes its own: none is left out for being odd.
            rank=self.world.rank if training else 0,
            world_size=self.world.size if training else 1,
            workers=config.dataloader_num_workers,
        )


@paddle.no_grad()
def evaluate(
    model: LlavaForConditionalGeneration,
    batches: Batches,
    dtype: str,
    config: TrainingConfig,
    world: World = World(),  # noqa: B008 (frozen)
) -> float:
    """The mean loss over all targets of one pass through `batches`, which the processes share."""
    model.eval()

    def own() -> tuple[float, int]:
        loss, targets = 0.0, 0
        with closing(iter(batches)) as stream:
            for number, batch in enumerate(stream):
                if number % world.size != world.rank:
                    continue
                with _autocast(dtype, config.fp16_opt_level):
                    loss += float(_loss(model, batch))
                targets += batch["num_targets"]
        return loss, targets

    loss, targets = world.sum(*world.together(own))
    model.train()
    return loss / max(targets, 1)


def _prepare(model: LlavaForConditionalGeneration, config: TrainingConfig) -> None:
    """Make `model` ready to learn what `config` says."""
    if config.lora:
        names = stored_names(model.config, "paddle")
        add_lora(model, names, config.lora_target_modules, config.lora_rank, config.lora_alpha, config.lora_dropout)
    select_trainable(model, model.config, config)
    if config.lora and config.lora_path:
        take_adapter(model, config, Path(config.lora_path).expanduser())
    model.language_model.recompute = config.recompute
    model.train()


def _total_steps(config: TrainingConfig, batches: Batches) -> int:
    """Optimizer steps; the last one of a last epoch that does not fill it begins the next epoch."""
    if config.max_steps > 0:
        return config.max_steps
    return max(1, math.ceil(config.num_train_epochs * batches.len_estimate() / config.gradient_accumulation_steps))


def _loss(model: LlavaForConditionalGeneration, batch: Batch) -> paddle.Tensor:
    pixels = batch.get("pixel_values")
    return model.loss(
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
    squares = [paddle.square(gradient.astype("float32")).sum() for gradient in gradients]
    return math.sqrt(float(paddle.add_n(squares)))


def _fixed(config: TrainingConfig) -> dict[str, Any]:
    """The settings that a resumed run must share for its steps to be those of an unbroken one."""
    keys = ("seed", "max_length", "mixtoken", "group_by_modality_length", "per_device_train_batch_size", "lora")
    return {key: getattr(config, key) for key in (*keys, "gradient_accumulation_steps", "lora_rank")}


def _due(strategy: str, every: int, step: int, epoch_ended: bool) -> bool:
    return epoch_ended if strategy == "epoch" else strategy == "steps" and step % every == 0


def _way_on(saved_step: int) -> str:
    again = "run the same command again"
    return f"{again} to go on after step {saved_step}" if saved_step else f"nothing was saved yet; {again}"


def _autocast(dtype: str, level: str) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == "float32" else paddle.amp.auto_cast(dtype=dtype, level=level)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _records(batch: Batch) -> str:
    return ", ".join(name for row in batch["records"] for name in row)


@contextmanager
def _stop_requests(launched: bool = False) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come meanwhile, instead of its ending the process in the middle of a step.

    The end of the launcher of several processes counts as one: it would leave them behind.
    """
    asked, parent = False, os.getppid()

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    if threading.current_thread() is not threading.main_thread():  # only there signals can be heard
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda: asked or (launched and os.getppid() != parent)
    finally:
        signal.signal(signal.SIGTERM, before)
