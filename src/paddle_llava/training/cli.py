"""`llava pretrain` and `llava finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from paddle_llava.flags import Debug

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A JSON file; see config/llava/.")]
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of both commands: flags that they do not know are keys of CONFIG."""


def pretrain(config: ConfigFile, context: typer.Context, debug: Debug = False) -> None:
    """Train the projector on captions; any key of CONFIG can be set anew: --learning_rate 1e-3."""
    _train(config, "pretrain", context.args)


def finetune(config: ConfigFile, context: typer.Context, debug: Debug = False) -> None:
    """Fine-tune on conversations, whole or with LoRA; any key of CONFIG can be set anew: --lora_rank 64."""
    _train(config, "finetune", context.args)


def _train(config: Path, stage: Literal["pretrain", "finetune"], arguments: Sequence[str]) -> None:
    from paddle_llava.training.config import overrides_from
    from paddle_llava.training.start import start

    print(start(config, stage, overrides_from(arguments)))
