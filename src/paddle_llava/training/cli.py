"""`llava pretrain` and `llava finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from paddle_llava.flags import Debug

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="A JSON file; see config/llava/.")]
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of both commands: flags that they do not know are keys of CONFIG."""


def pretrain(config: ConfigFile, context: typer.Context, debug: Debug = False) -> None:
    """Train the projector on captions; any key of CONFIG can be set anew: --learning_rate 1e-3."""
    _train("pretrain", [config, *context.args])


def finetune(config: ConfigFile, context: typer.Context, debug: Debug = False) -> None:
    """Fine-tune on conversations, whole or with LoRA; any key of CONFIG can be set anew: --lora_rank 64."""
    _train("finetune", [config, *context.args])


def _train(stage: Literal["pretrain", "finetune"], arguments: Sequence[str]) -> None:
    """`arguments` as they were typed: where a flag comes first, typer takes it for CONFIG."""
    from paddle_llava.training.config import file_and_overrides
    from paddle_llava.training.start import start

    file, overrides = file_and_overrides(arguments)
    print(start(file, stage, overrides))
