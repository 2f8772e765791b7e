"""ZeRO stages 2 and 3 (Rajbhandari et al. 2020, arXiv:1910.02054), by Paddle's `group_sharded_parallel`.

Paddle has them for GPUs and other devices only, not for CPUs. Its wrappers listen to the model's call and to each
gradient, so all processes must call it equally often, in the same order, and meet the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor, nn

from paddle_llava.models.llava import IGNORE_INDEX, LlavaNetwork
from paddle_llava.training.checkpoint import forget_slots, optimizer_slots
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import trainable
from paddle_llava.training.parallel import World, broadcast

LEVELS = {"stage2": "os_g", "stage3": "p_g_os"}
"""What Paddle calls the stages of the key `sharding`: each process keeps a share of the optimizer's state and of the
gradients (`os_g`), and of the parameters too (`p_g_os`)."""


class GroupSharding:
    """A model, optimizer and loss scaler that are shared out over all processes.

    `loss` is `LlavaNetwork.loss`; `optimizer` and `scaler` take the step, clipping included. Parameters must be what
    the run starts with: those of stage 3 are freed here, and come back with `gather_parameters`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: LlavaNetwork,
        optimizer: paddle.optimizer.AdamW,
        scaler: paddle.amp.GradScaler,
        world: World,
    ) -> None:
        self.world = world
        self.parameters = trainable(model)
        self.shares_parameters = config.sharding == "stage3"
        if config.max_grad_norm:
            optimizer._grad_clip = nn.ClipGradByGlobalNorm(config.max_grad_norm)
        decays = optimizer._apply_decay_param_fun
        # Stage 3 updates slices, which are named after their parameters.
        optimizer._apply_decay_param_fun = lambda name: decays(name.removeprefix("slice@"))
        self.loss, self.optimizer, self.scaler = dist.sharding.group_sharded_parallel(
            _Loss(model), optimizer, LEVELS[config.sharding], scaler, exclude_layer=_kept_whole(model)
        )

    def step(self) -> None:
        """Apply the gradients, which were summed on the way, and forget them."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.clear_grad()

    def gather_parameters(self, *, frozen: bool = False) -> None:
        """Let every process hold the parameters that learn whole, in the host's memory, until the next step; with
        `frozen` the others too."""
        if self.shares_parameters:
            self.loss.get_all_parameters(convert2cpu=True, with_freeze_param=frozen)

    def gather_slots(self) -> dict[str, Tensor]:
        """The optimizer's whole state, as `optimizer_slots` names it, in the host's memory of the first process; empty
        in the others."""
        whole = {}
        for name, parameter in self.parameters.items():
            for key, slot in self._slots(name, parameter).items():
                tensor = self._gathered(slot, parameter)
                if self.world.rank == 0:
                    whole[key] = tensor.cpu()
            self._forget(parameter)
        return whole

    def take_slots(self, read: Callable[[str], np.ndarray]) -> None:
        """Start from the state of which `read` gives each whole array."""
        for name, parameter in self.parameters.items():
            for key, slot in self._slots(name, parameter).items():
                slot.set_value(self._share(read(key), slot, parameter))
            self._forget(parameter)

    def _slots(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """What this process holds, or could, of the state for `parameter`."""
        part = getattr(parameter, "fw_storage", None)
        return optimizer_slots(self.optimizer._optim, {name: parameter if part is None else part})

    def _gathered(self, slot: Tensor, parameter: Tensor) -> Tensor:
        if not self.shares_parameters:
            broadcast(slot, self.optimizer.param2rank[parameter.name])
            return slot
        if not _is_sliced(slot, parameter):
            return slot
        slices: list[Tensor] = []
        dist.all_gather(slices, slot)
        return paddle.concat(slices)[: int(np.prod(parameter.shape))].reshape(parameter.shape)

    def _share(self, whole: np.ndarray, slot: Tensor, parameter: Tensor) -> np.ndarray:
        if not _is_sliced(slot, parameter):
            return whole
        size, rank = slot.shape[0], self.world.rank
        share = whole.ravel()[rank * size : (rank + 1) * size]
        return np.pad(share, (0, size - len(share)))

    def _forget(self, parameter: Tensor) -> None:
        """Free the state for a parameter that another process updates."""
        if not self.shares_parameters and self.optimizer.param2rank[parameter.name] != self.world.rank:
            forget_slots(self.optimizer._optim, parameter)


class _Loss(nn.Layer):
    """`model.loss` as a layer's call."""

    def __init__(self, model: LlavaNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> Tensor:
        return self.model.loss(*arguments)


def with_picture(batch: Mapping[str, Any], model: LlavaNetwork) -> Mapping[str, Any]:
    """`batch`, and where it has no picture a blank one, as a sample of its own from which nothing is learnt: else a
    process without pictures would have no gradient for the projector, for which the others wait."""
    if "pixel_values" in batch:
        return batch
    config, side = model.config, model.config.vision.image_size
    layout = config.image_layout((side, side))
    features = layout.num_features
    columns = {"input_ids": 0, "labels": IGNORE_INDEX, "position_ids": 0, "segment_ids": 0}
    longer = {key: np.pad(batch[key], ((0, 0), (0, features)), constant_values=fill) for key, fill in columns.items()}
    longer["input_ids"][0, -features:] = config.image_token_id
    longer["position_ids"][0, -features:] = np.arange(features)
    longer["segment_ids"][0, -features:] = batch["segment_ids"][0].max() + 1
    blank = np.zeros((layout.tiles, 3, side, side), np.float32)
    return {**batch, **longer, "pixel_values": blank, "image_sizes": np.array([[side, side]])}


def _kept_whole(model: LlavaNetwork) -> list[int]:
    """Layers that stage 3 does not cut up: those that run more often where there are more tiles, which other processes
    would not wait for, and the embeddings where the head uses their weight."""
    parts: list[nn.Layer] = [model.vision_tower, model.projector]
    if model.config.text.tie_word_embeddings:
        parts.append(model.language_model.embed_tokens)
    return [id(layer) for part in parts for layer in part.sublayers(include_self=True)]


def _is_sliced(slot: Tensor, parameter: Tensor) -> bool:
    """Whether `slot` is a slice of what belongs to `parameter`: neither of its shape nor a single number."""
    return slot.shape != parameter.shape and slot.shape != [1]
