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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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
from paddle_llava.training.optimizer import build_optimizer, select_trainable
from paddle_llava.training.parallel import World
from paddle_llava.training.plan import Plan, make_plan
from paddle_llava.training.report import write_report
from paddle_llava.training.result import BEST, adapter_of, clear_result, finished_steps, take_adapter, write_result
from paddle_llava.training.step import Say, Stepper, evaluate


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
        self.stepper = Stepper(config, self.model, self.optimizer, self.dtype, self.world, self.say)
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
                    learnt = self.stepper.step(state.step + 1, stream, stop_requested)
                except KeyboardInterrupt:
                    self.say(f"interrupted in step {state.step + 1}; {_way_on(saved_step)}")
                    raise
                if learnt is None:
                    if state.step > saved_step:
                        self._save(output_dir, keep=config.save_total_limit)
                    self._report(plan, total, with_predictions=False)
                    raise LlavaError(f"stopped by SIGTERM after step {state.step}; {_way_on(state.step)}")
                learning_rate = self.optimizer.get_lr()
                schedule.step()
                state.step += 1
                previous_epoch = state.position[0] if state.position else 0
                state.position = learnt.position
                state.skipped += learnt.skipped
                log.step(state.step, learnt.loss, learning_rate, learnt.counts)
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
        if self.stepper.sharded is not None:
            self.stepper.sharded.drop_others()
        return state

    def _save(self, folder: Path, keep: int | None) -> None:
        """Write a checkpoint from the first process; all hold the same parameters."""
        config = self.config
        if self.stepper.sharded is not None:
            self.stepper.sharded.gather()

        def save() -> None:
            if self.world.rank == 0:
                also = (
                    (lambda to: write_adapter(to, adapter_of(self.model, config), self.model.config))
                    if (config.lora)
                    else None
                )
                save_checkpoint(folder, self.model, self.optimizer, self.state, keep=keep, also=also)

        self.world.together(save)
        if self.stepper.sharded is not None:
            self.stepper.sharded.drop_others()

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


def _fixed(config: TrainingConfig) -> dict[str, Any]:
    """The settings that a resumed run must share for its steps to be those of an unbroken one."""
    keys = ("seed", "max_length", "mixtoken", "group_by_modality_length", "per_device_train_batch_size", "lora")
    return {key: getattr(config, key) for key in (*keys, "gradient_accumulation_steps", "lora_rank")}


def _due(strategy: str, every: int, step: int, epoch_ended: bool) -> bool:
    return epoch_ended if strategy == "epoch" else strategy == "steps" and step % every == 0


def _way_on(saved_step: int) -> str:
    again = "run the same command again"
    return f"{again} to go on after step {saved_step}" if saved_step else f"nothing was saved yet; {again}"


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
