"""`llava data check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paddle_llava.errors import LlavaError
from paddle_llava.flags import AsJson, ConvMode, Debug, ModelPath

if TYPE_CHECKING:
    from paddle_llava.training.config import TrainingConfig

DEFAULT_MODEL, DEFAULT_LENGTH = "llava-hf/llava-1.5-7b-hf", 2048

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Work with training data.")


@data_app.command("check")
def check(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Training files, JSON or JSONL, or patterns; or one configuration."),
    ],
    model_path: ModelPath = None,
    conv_mode: ConvMode = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="The longest sequence, in tokens; default: the configuration's, or 2048.")
    ] = None,
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
    name only the small files are downloaded, not the weights. Of a training's configuration the files under
    dataset.train are checked, each as that training takes it; its model and its settings are the defaults.
    """
    from paddle_llava.data.check import run_check
    from paddle_llava.data.mixture import Mixture, matching_files
    from paddle_llava.data.records import RecordFile
    from paddle_llava.environment import physical_cores
    from paddle_llava.hub import Unreachable
    from paddle_llava.processing.processor import LlavaProcessor

    paths = [path for pattern in files for path in matching_files(pattern, "FILE")]
    config = _configuration(paths)
    if config is not None:
        if fix is not None:
            raise LlavaError(f"--fix {fix}: one file cannot stand for those of {paths[0]}; check them one by one")
        model_path = config.model_name_or_path if model_path is None else model_path
        conv_mode = config.conv_mode if conv_mode is None else conv_mode
        max_length = config.max_length if max_length is None else max_length
    try:
        name = DEFAULT_MODEL if model_path is None else model_path
        processor = LlavaProcessor.from_pretrained(name, conv_mode=conv_mode)
    except Unreachable as error:
        raise LlavaError(f"{error}; or give --model-path, a folder or a name that is in the cache") from error
    if config is None:
        told = [(RecordFile(path, image_folder=image_folder), processor.template) for path in paths]
    else:
        told = Mixture.from_entries(config.dataset.get("train"), processor.template, image_folder=image_folder).files
    return run_check(
        told,
        processor,
        DEFAULT_LENGTH if max_length is None else max_length,
        workers=physical_cores() if workers is None else workers,
        show=show,
        fix=fix,
        as_json=as_json,
    )


def _configuration(paths: list[Path]) -> TrainingConfig | None:
    """The settings of a training, if that is what the only file holds, and no records."""
    from paddle_llava.json_file import read_json
    from paddle_llava.training.config import TrainingConfig

    if len(paths) != 1:
        return None
    try:
        raw = read_json(paths[0])
    except LlavaError:  # a list, or JSONL; what cannot be read at all is told when its records are looked for
        return None
    return TrainingConfig.read(paths[0])[0] if "dataset" in raw else None
