"""How a run saves itself and goes on: what of it is in a checkpoint, and which one it takes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_llava.checkpoints.adapter import write_adapter
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.training.checkpoint import (
    TrainerState,
    checkpoint_folders,
    load_checkpoint,
    open_slots,
    save_checkpoint,
    step_of,
)
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.loss_scale import restore_scaler, scaler_state
from paddle_llava.training.preparation import batches_a_step, was_alike
from paddle_llava.training.result import BEST, adapter_of, clear_result, finished_steps
from paddle_llava.training.step import Say, Stepper
from paddle_llava.training.tensor_parallel import whole


def is_finished(config: TrainingConfig, total: int, say: Say) -> bool:
    """Whether all `total` steps were done in an earlier run, whose result is to be left as it is."""
    output_dir = Path(config.output_dir).expanduser()
    done = finished_steps(output_dir)
    if config.overwrite_output_dir or config.resume_from_checkpoint is not None or done < total:
        return False
    say(
        f"{output_dir}: finished already, after {done} steps, and left as it is; overwrite_output_dir trains "
        "anew, more num_train_epochs or max_steps go on"
    )
    return True


def resume(stepper: Stepper, samples: int) -> TrainerState:
    """Put the checkpoint to go on from, if there is one, into the run, whose epochs have `samples`; returns where it
    stands.

    What an earlier run left in `output_dir` as its result is no longer one. Raises `LlavaError` when the checkpoint
    does not fit, or is one that another run has gone on from in the same `output_dir`.
    """
    config, first = stepper.config, stepper.world.rank == 0
    output_dir = Path(config.output_dir).expanduser()
    given, anew = config.resume_from_checkpoint, config.overwrite_output_dir
    found = starting_checkpoint(config)
    state = load(stepper, found) if found else TrainerState(fixed=_fixed(config))
    if given is not None:
        stepper.world.together(lambda: _check_is_newest(config, state.step))
    stepper.share_out()
    if found and stepper.group is not None:
        with open_slots(found) as read:
            stepper.group.take_slots(read)
    removed = clear_result(output_dir, checkpoints=anew and given is None) if first else 0
    if removed:
        stepper.say(f"overwrite_output_dir: removed {removed} checkpoints of an earlier run")
    if found:
        stepper.say(f"going on from {found}, after step {state.step}")
        if not was_alike(state, batches_a_step(config, stepper.world.replicas)):
            stepper.say("it was made by another number of processes; what it left of the epochs is shared out anew")
    if state.samples not in (0, samples):
        stepper.say(
            f"an epoch has {samples:,} samples now and had {state.samples:,} before, so their order is another: of "
            "this epoch some come twice and some not at all"
        )
    state.samples = samples
    return state


def starting_checkpoint(config: TrainingConfig) -> Path | None:
    """The checkpoint to go on from, if there is one: `resume_from_checkpoint`, else the newest of an `output_dir` that
    is not to be overwritten."""
    if config.resume_from_checkpoint is not None:
        return Path(config.resume_from_checkpoint).expanduser()
    found = [] if config.overwrite_output_dir else checkpoint_folders(Path(config.output_dir).expanduser())
    return found[-1] if found else None


def _check_is_newest(config: TrainingConfig, step: int) -> None:
    """Raise `LlavaError` where checkpoints of more than `step` steps lie: the next run would take up one of them."""
    output_dir = Path(config.output_dir).expanduser()
    found = [*checkpoint_folders(output_dir), *checkpoint_folders(output_dir / BEST)]
    later = max(found, key=step_of, default=None)
    if later is not None and step_of(later) > step:
        keys = starting_keys(config)
        raise LlavaError(
            f"resume_from_checkpoint is of step {step}, but {later} is later, and the steps of two runs would mix; "
            f"leave {keys} out to go on from the newest, give another output_dir, or move the later ones away"
        )


def starting_keys(config: TrainingConfig) -> str:
    """The keys by which a run starts from something else than the newest checkpoint; empty without any."""
    keys = ("overwrite_output_dir", "resume_from_checkpoint")
    return " and ".join(key for key in keys if getattr(config, key))


def load(stepper: Stepper, folder: Path) -> TrainerState:
    """Put the checkpoint in `folder` into the run; returns where it stood. Raises `LlavaError` when it does not fit."""
    whole = stepper.sharded is None and not stepper.world.in_step
    state = load_checkpoint(folder, stepper.model, stepper.optimizer, _fixed(stepper.config), with_slots=whole)
    restore_scaler(stepper.scaler, state.scaler)
    if stepper.sharded is not None:
        with open_slots(folder) as read:
            stepper.sharded.take_slots(read)
    return state


def save(
    folder: Path, model: LlavaForConditionalGeneration, stepper: Stepper, state: TrainerState, *, keep: int | None
) -> None:
    """Write `folder/checkpoint-STEP` from the first process; all hold the same parameters.

    With LoRA it holds the adapter as well, usable by itself. Raises `LlavaError` in all processes when it cannot.
    """
    config, world, sharded = stepper.config, stepper.world, stepper.sharded
    state.scaler = scaler_state(stepper.scaler)
    slots = None
    if sharded is not None:
        slots = sharded.gather_slots()
    if stepper.group is not None:
        stepper.group.gather_parameters()
        slots = stepper.group.gather_slots()

    def adapter(to: Path) -> None:
        write_adapter(to, adapter_of(model, config), model.config)

    def write() -> None:
        if world.rank == 0:
            also = adapter if config.lora else None
            save_checkpoint(folder, model, stepper.optimizer, state, slots=slots, keep=keep, also=also)

    with whole(model, stepper.optimizer if slots is None else None, world):
        world.together(write)


def put_best_back(stepper: Stepper, best_loss: float | None) -> None:
    """Load the weights that evaluated best, if the run has kept any."""
    best = checkpoint_folders(Path(stepper.config.output_dir).expanduser() / BEST)
    if best:
        step = load(stepper, best[-1]).step
        stepper.say(f"the best model, of step {step}, is put back: eval loss {best_loss:.4f}")


def _fixed(config: TrainingConfig) -> dict[str, Any]:
    """The settings that a resumed run must share for its steps to be those of an unbroken one."""
    keys = ["seed", "max_length", "mixtoken", "group_by_modality_length", "per_device_train_batch_size", "lora"]
    keys += ["gradient_accumulation_steps", "lora_rank", *(["lora_alpha"] if config.lora else [])]
    return {key: getattr(config, key) for key in keys}
