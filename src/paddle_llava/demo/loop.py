"""The plain training loop of eye and tongue: batches made ahead, AdamW, checkpoints that a stopped run goes on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import paddle
from paddle import Tensor, nn

from paddle_llava.allocator import keep_freed_memory
from paddle_llava.data.pool import runner
from paddle_llava.training.checkpoint import TrainerState, checkpoint_folders, load_checkpoint, save_checkpoint
from paddle_llava.training.interruption import stop_requests
from paddle_llava.training.optimizer import trainable
from paddle_llava.training.parallel import World

Say = Callable[[str], object]
Progress = Callable[[int, int], object]  # steps done, steps in all
WARMUP, COOLDOWN = 100, 0.3
LOSS_EVERY = 25
"""Steps of which a line of the log tells the mean loss."""


class Maker(Protocol):
    """Makes the batch of any step by itself, in whatever process."""

    def batch(self, step: int) -> dict[str, Any]: ...


def fit(
    layer: nn.Layer,
    maker: Maker,
    loss_of: Callable[[dict[str, Any]], Tensor],
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    judge: Callable[[], dict[str, float]],
    judge_every: int,
    say: Say,
    progress: Progress | None = None,
    workers: int = 1,
    world: World | None = None,
) -> bool:
    """Train `layer` for `steps`; False when SIGTERM stopped it before, with a checkpoint in `folder`.

    The rate warms up, stays, and falls to nothing over the last third. `judge` gives held-out figures, which go to
    `log.jsonl` with the loss; `progress` is told of every step. The processes of a `world` take turns with the
    batches, of which a step is one each.
    """
    world = world or World()
    keep_freed_memory()
    # A transpose that is a view is copied element by element by the product that reads it, at ten times the cost.
    paddle.set_flags({"FLAGS_use_stride_kernel": False})
    schedule = paddle.optimizer.lr.LambdaDecay(
        learning_rate, lambda step: min(1.0, (step + 1) / WARMUP, (steps - step) / (COOLDOWN * steps))
    )
    parameters = list(trainable(layer).values())
    optimizer = paddle.optimizer.AdamW(
        schedule,
        beta2=0.98,
        parameters=parameters,
        weight_decay=0.02,
        apply_decay_param_fun=lambda name: True,
        grad_clip=nn.ClipGradByGlobalNorm(1.0),
    )
    folder.mkdir(parents=True, exist_ok=True)
    state, found = TrainerState(), checkpoint_folders(folder)
    if found:
        state = load_checkpoint(found[-1], layer, optimizer, {})
        say(f"going on from {found[-1]}")
    losses, started, first = [], time.monotonic(), state.step
    with (
        runner(maker, workers) as run,
        stop_requests() as stop_requested,
        (folder / "log.jsonl").open("a") as log,
    ):
        own = range(state.step * world.size + world.rank, steps * world.size, world.size)
        for batch in run("batch", ((number,) for number in own), 4):
            layer.train()
            loss = loss_of(batch)
            (loss / world.size).backward()
            world.sum_gradients(parameters)
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)
            schedule.step()
            losses.append(float(loss))
            state.step += 1
            if progress:
                progress(state.step, steps)
            ended, stopped = state.step == steps, world.any(stop_requested())
            judged = world.rank == 0 and (state.step % judge_every == 0 or ended or stopped)
            if judged or (world.rank == 0 and state.step % LOSS_EVERY == 0):
                rate = (state.step - first) / (time.monotonic() - started)
                line = {"step": state.step, "loss": sum(losses) / len(losses), "steps_a_second": rate}
                losses = []
                if judged:
                    layer.eval()
                    with paddle.no_grad():
                        line |= judge()
                    say(", ".join(f"{key} {value:.4g}" for key, value in line.items()))
                    save_checkpoint(folder, layer, optimizer, state, keep=1)
                print(json.dumps({key: round(value, 4) for key, value in line.items()}), file=log, flush=True)
            if stopped and not ended:
                return False
    return True
