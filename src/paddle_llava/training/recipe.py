"""The training loop, in plain sight.

One recipe pretrains the projector and fine-tunes, whole or with LoRA; what differs is what learns. A step's loss is the
mean over all target tokens of all its micro-batches on all devices, so that accumulating or adding devices changes no
gradient. Every random number of a step comes from the seed and the step's number: a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from paddle_llava.data.loader import Batches, Position
from paddle_llava.data.mixture import Mixture
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import Template
from paddle_llava.training.checkpoint import TrainerState, read_state
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.interruption import Interruption, StopRequested, stop_requests
from paddle_llava.training.log import TrainingLog
from paddle_llava.training.optimizer import build_optimizer
from paddle_llava.training.parallel import PeerLost, World
from paddle_llava.training.plan import make_plan
from paddle_llava.training.preparation import batches_a_step, evaluates, make_batches, prepare, total_steps
from paddle_llava.training.report import write_report
from paddle_llava.training.result import BEST, check_result, template_to_name, write_result
from paddle_llava.training.resume import is_finished, put_best_back, resume, save, starting_checkpoint, starting_keys
from paddle_llava.training.step import Say, Stepper, evaluate
from paddle_llava.training.tensor_parallel import put_together, split


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
    has come: a checkpoint is saved first, unless the weights are no numbers any more. After the last step it has no
    effect: the result and its report are written first. SIGINT (Ctrl-C) saves none, but lets one be written to its end;
    then `KeyboardInterrupt` is raised, and said before how to go on.
    """
    output_dir, quiet = Path(config.output_dir).expanduser(), world.rank > 0
    for note in prepare(model, config):
        say(note)
    split(model, world)
    eval_batches = make_batches("eval", config, processor, template, world) if evaluates(config) else None
    if not config.do_train:
        if eval_batches is None:
            raise LlavaError("do_train and do_eval are both false: there is nothing to do")
        with TrainingLog(output_dir, 0, 0, every=1, live=False, quiet=quiet) as log:
            loss = evaluate(model, eval_batches, dtype, config, world, say=say)
            log.write({"step": 0, "eval_loss": round(loss, 6)})
            say(f"evaluation: loss {loss:.4f}")
        return output_dir

    batches = make_batches("train", config, processor, template, world)
    checkpoint = starting_checkpoint(config)
    total = total_steps(config, batches, read_state(checkpoint) if checkpoint else TrainerState())
    if is_finished(config, total, say):
        return output_dir
    world.together(lambda: None if quiet else check_result(output_dir, model, processor, config))
    optimizer = build_optimizer(model, config, total)
    schedule = optimizer._learning_rate
    stepper = Stepper(config, model, optimizer, dtype, world, say)
    plan = make_plan(model, config, total, world)
    say("\n".join(plan.lines()))
    state = resume(stepper, batches.maker.mixture.epoch_samples)
    batches.start = Position(*state.position)
    begun = saved_step = state.step

    def report(told: str | None) -> None:
        """Write `report.html`, with answers to questions of the split `told`; that it cannot be is said, and nothing
        else is lost by it."""
        if quiet:
            return
        try:
            samples = Mixture.from_entries(config.dataset[told], template) if told else None
            say(f"report: {write_report(config, plan, state, total, model, processor, samples)}")
        except (LlavaError, OSError, MemoryError) as error:
            say(f"report.html could not be written: {error}")

    def where() -> str:
        return f"after step {state.step}; {_way_on(config, begun, saved_step)}"

    def keep() -> str:
        """Save what was learnt since the last checkpoint, for the run ends early; gives where it stands."""
        nonlocal saved_step
        if state.step > saved_step and stepper.is_sound():
            with interruption.held():
                save(output_dir, model, stepper, state, keep=config.save_total_limit)
                saved_step = state.step
        report(None)
        return where()

    @contextmanager
    def kept() -> Iterator[None]:
        """For what a bad record may end, which is not to take with it what was learnt before."""
        try:
            with world.computing():
                yield
        except PeerLost:
            raise
        except LlavaError:
            if state.step:
                say(f"stopped {keep()}")
            raise

    with (
        Interruption(lambda: say(f"interrupted {where()}")) as interruption,
        stop_requests(launched=world.size > 1) as stop_requested,
    ):
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
        ):

            def look(batches: Batches) -> None:
                """Evaluate, and keep the model if it is the best so far."""
                state.unevaluated = True
                try:
                    with kept():
                        loss = evaluate(model, batches, dtype, config, world, stop_requested, say)
                except StopRequested:
                    raise LlavaError(f"stopped by SIGTERM {keep()}") from None
                with interruption.held():
                    state.unevaluated = False
                    log.write({"step": state.step, "eval_loss": round(loss, 6)})
                    say(f"evaluation after step {state.step}: loss {loss:.4f}")
                    best = math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
                    if config.load_best_model_at_end and best:
                        state.best_loss = loss
                        save(output_dir / BEST, model, stepper, state, keep=1)

            if eval_batches is not None and state.unevaluated:
                look(eval_batches)
            while state.step < total:
                with kept():
                    learnt = stepper.step(state.step + 1, stream, stop_requested)
                if learnt is None:
                    raise LlavaError(f"stopped by SIGTERM {keep()}")

                with interruption.held():
                    state.step += 1
                    state.position = learnt.position
                    state.batches += batches_a_step(config, world.replicas)
                    state.skipped += learnt.skipped
                    log.step(state.step, learnt.loss, optimizer.get_lr(), learnt.counts)
                    schedule.step()
                last = state.step == total

                with log.aside():
                    due = _due(config.evaluation_strategy, config.eval_steps, state.step, learnt.epoch_ended)
                    if eval_batches is not None and (last or due):
                        look(eval_batches)
                    due = _due(config.save_strategy, config.save_steps, state.step, learnt.epoch_ended)
                    if due or (last and config.save_strategy != "no"):
                        with interruption.held():
                            save(output_dir, model, stepper, state, keep=config.save_total_limit)
                            saved_step = state.step

        if config.load_best_model_at_end:
            put_best_back(stepper, state.best_loss)
        put_together(model)
        if stepper.group is not None:
            stepper.group.gather_parameters(frozen=True)
        with interruption.held():
            told_in = batches.maker.mixture.template
            world.together(
                lambda: None if quiet else write_result(output_dir, model, processor, told_in, config, total)
            )
        if to_name := template_to_name(told_in, model.config.conv_mode, lora=config.lora):
            say(to_name)
        if state.skipped:
            say(f"{state.skipped} records or batches could not be used and were skipped")
        # The model of stage 3 stays cut up: no process can run it alone to ask it something.
        report(None if config.sharding == "stage3" and world.in_step else "eval" if evaluates(config) else "train")
    return output_dir


def _due(strategy: str, every: int, step: int, epoch_ended: bool) -> bool:
    return epoch_ended if strategy == "epoch" else strategy == "steps" and step % every == 0


def _way_on(config: TrainingConfig, begun: int, saved_step: int) -> str:
    """How to go on with a run that began after step `begun`."""
    again = "run the same command again"
    if not saved_step:
        return f"nothing was saved yet; {again}"
    if saved_step > begun and (keys := starting_keys(config)):
        again += f" without {keys}"
    return f"{again} to go on after step {saved_step}"
