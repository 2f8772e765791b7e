"""`llava demo` and `llava demo train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paddle_llava.flags import Debug

demo_app = typer.Typer(rich_markup_mode=None)


@demo_app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    image_file: Annotated[str | None, typer.Option(metavar="PATH|URL", help="Another picture.")] = None,
    model_path: Annotated[str | None, typer.Option(metavar="NAME|FOLDER", help="Another model.")] = None,
    debug: Debug = False,
) -> int:
    """Chat about a drawn street with the small model that comes with the package, or with another one."""
    if context.invoked_subcommand:
        return 0
    from paddle_llava.demo.demo import run_demo

    return run_demo(image_file, model_path, debug=debug)


@demo_app.command()
def train(
    output_dir: Annotated[Path, typer.Option(help="Where everything is kept; a stopped run goes on there.")] = Path(
        "street"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A poorer model in a quarter of an hour.")] = False,
    debug: Debug = False,
) -> None:
    """Train the street model from nothing: eye, tongue, llava pretrain, all together, llava finetune."""
    from paddle_llava.console import importing_paddle, note

    with importing_paddle():
        from paddle_llava.demo.train import train as train_all

    print(train_all(output_dir, quick, note))
