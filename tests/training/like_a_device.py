"""`llava finetune` with a CPU that passes for a device of its own, so that Paddle's sharding stages 2 and 3 run on it.

    python like_a_device.py SETTINGS

What these stages see as `paddle` says so; all else runs as it does on a CPU. Parameters of any size are cut up.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from paddle_llava.training import start  # before Paddle, whose settings it makes

# isort: split
import paddle
import paddle.distributed as dist
from paddle.distributed.fleet.meta_parallel.sharding import (
    group_sharded_optimizer_stage2,
    group_sharded_stage3,
    group_sharded_storage,
    group_sharded_utils,
)
from paddle.distributed.sharding import group_sharded
from paddle.framework import core

SMALLEST_CUT = 200
ALIGNMENT = 256


class Seen:
    """`module`, some of whose names mean something else."""

    def __init__(self, module: Any, **names: Any) -> None:
        self.module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def pretend() -> None:
    stages = (group_sharded_optimizer_stage2, group_sharded_stage3)
    here = {"get_device": lambda: "cpu:0", "set_device": lambda _: None}
    devices = Seen(paddle.device, **here, get_all_custom_device_type=lambda: ["cpu"])
    seen = Seen(paddle, **here, device=devices, CustomPlace=lambda *_: None)
    for module in (*stages, group_sharded_storage, group_sharded_utils, group_sharded):
        module.paddle = seen
    library = Seen(core.libpaddle, _get_device_min_chunk_size=lambda _: ALIGNMENT)
    for module in stages:
        module.core = Seen(core, libpaddle=library, get_all_custom_device_type=lambda: ["cpu"])
    # There and back again is a copy elsewhere, and memory of the host's is freed after it.
    paddle.Tensor._copy_to = lambda self, *_: self
    paddle.Tensor.cpu = lambda self: self.detach().clone()
    dist.sharding.group_sharded_parallel = partial(dist.sharding.group_sharded_parallel, segment_size=SMALLEST_CUT)
    start.check_sharding = lambda *_: None


if __name__ == "__main__":
    pretend()
    start.start(Path(sys.argv[1]), "finetune", {})
