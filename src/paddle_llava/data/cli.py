"""`llava data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paddle_llava.errors import LlavaError
from paddle_llava.flags import AsJson, ConvMode, Debug, ModelPath

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Work with training data.")


@data_app.command("check")
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Training files, JSON or JSONL, or patterns.")],
    model_path: ModelPath = None,
    conv_mode: ConvMode = None,
    max_length: Annotated[int, typer.Option(min=1, help="The longest sequence, in tokens.")] = 2048,
    image_folder: Annotated[Path | None, typer.Option(help="Where relative paths of pictures start.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes to check with, 0: no other; default: one a core.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Print this many samples, their targets coloured.")] = 0,
    fix: Annotated[Path | None, typer.Option(metavar="OUT", help="Write the good records to this file.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Try out every record before a training; the exit code is 1 when any is bad.

    Tokens and pictures are counted as the model at --model-path takes them, by default llava-hf/llava-1.5-7b-hf. Of a
    name only the small files are downloaded, not the weights.
    """
    from paddle_llava.data.check import run_check
    from paddle_llava.data.mixture import matching_files
    from paddle_llava.environment import physical_cores
    from paddle_llava.hub import Unreachable
    from paddle_llava.processing.processor import LlavaProcessor

    paths = [path for pattern in files for path in matching_files(pattern, "FILE")]
    try:
        name = DEFAULT_MODEL if model_path is None else model_path
        processor = LlavaProcessor.from_pretrained(name, conv_mode=conv_mode)
    except Unreachable as error:
        raise LlavaError(f"{error}; or give --model-path, a folder or a name that is in the cache") from error
    return run_check(
        paths,
        processor,
        processor.template,
        max_length,
        image_folder=image_folder,
        workers=physical_cores() if workers is None else workers,
        show=show,
        fix=fix,
        as_json=as_json,
    )
