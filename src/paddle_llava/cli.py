"""The `llava` command: one small function a command, and in `main` how each of them may end.

Nothing heavy is imported here; each command imports what it runs.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from paddle_llava import __version__
from paddle_llava.console import complain, note, progress_bar, tolerant_streams, warnings_as_notes
from paddle_llava.data.cli import data_app
from paddle_llava.demo.cli import demo_app
from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.evaluation.cli import eval_app
from paddle_llava.flags import AsJson, ConvMode, Debug, Device, Dtype, EngineName, LoraPath, ModelPath, WeightFormat
from paddle_llava.serving.cli import serve_command
from paddle_llava.training.cli import OVERRIDES, finetune, pretrain

# Newer typers carry a copy of click and older ones use click itself; the class is found by this way in both.
UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["--help", "-h"],
        "max_content_width": 100,
        "token_normalize_func": lambda name: name.replace("_", "-"),  # --model_path is --model-path; values stay
    },
)

ImageFiles = Annotated[
    list[str] | None, typer.Option("--image-file", metavar="PATH|URL", help="A picture; may be repeated.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `llava` with `arguments` (default: the process's) and return its exit code.

    0 is success, 1 a fault of this program, 2 a mistake of the caller's (one line on stderr), 130 an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    tolerant_streams()
    try:
        with warnings_as_notes():
            code = app(arguments, prog_name="llava", standalone_mode=False)
            sys.stdout.flush()
            return code or 0
    except LlavaError as error:
        complain(str(error))
        return 2
    except UsageError as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it closes stdout
        return 1
    except OSError as error:
        complain(f"{error.filename or 'the system'}: {error.strerror or error}")
        return 2
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        hint = "" if "--debug" in arguments else "; rerun with --debug for the traceback"
        complain(f"internal error, please report it: {type(error).__name__}: {str(error)[:200]}{hint}")
        return 1


def _usage(error: Any) -> int:
    """Say what is wrong with the command line, and the nearest that would be right."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 0
    message = error.message if hasattr(error, "option_name") else error.format_message()
    if unknown := re.match("No such command '(.*?)'", message):
        message = unknown[0] + did_you_mean(unknown[1], error.ctx.command.commands)
    elif getattr(error, "possibilities", None):
        message += did_you_mean(error.option_name, error.possibilities)
    complain(message.rstrip(".") + (f"; see {error.ctx.command_path} --help" if error.ctx else ""))
    return 2


def _print_version(asked: bool) -> None:
    if asked:
        print(f"llava {__version__}")
        raise typer.Exit


@app.callback()
def _llava(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """LLaVA 1.5 and 1.6 on PaddlePaddle."""


@app.command("chat")
def chat_command(
    model_path: ModelPath = None,
    image_file: ImageFiles = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Ask this and leave; may be repeated.")
    ] = None,
    lora_path: LoraPath = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Replaces the template's system text.")] = None,
    conv_mode: ConvMode = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.2,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that add up to this.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from this many tokens; 0: from all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: avoid tokens that were there.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 512,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End an answer before this; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    engine: EngineName = "auto",
    weights: WeightFormat = None,
    dtype: Dtype = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Short for --dtype float16.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Short for --dtype bfloat16.")] = False,
    device: Device = None,
    draw: Annotated[
        str | None, typer.Option(metavar="OUT.png", help="Draw the boxes of an answer into a copy of its picture.")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(metavar="IN.jsonl", help="Answer the questions of this file, many at a time.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl", help="Where their answers go; a stopped run goes on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of a file asked at a time.")] = 16,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Chat about pictures.

    At a terminal, /help lists the commands. In a pipe, each line of stdin is a question (or a command), answers go to
    stdout and everything else to stderr; the exit code is 2 if any question failed.
    """
    from paddle_llava.batch import open_batch, run_batch
    from paddle_llava.chat import Chat, is_interactive, open_picture, open_session
    from paddle_llava.drawing import picture_path
    from paddle_llava.generation.sampling import SamplingParams

    if model_path is None:
        raise LlavaError(
            "--model-path is missing: give a name such as llava-hf/llava-1.5-7b-hf, or a folder; "
            "`llava demo` shows a chat without either"
        )
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
    )
    dtype = _one_dtype(dtype, fp16, bf16)
    if batch or out:
        for flag, value in {"--image-file": image_file, "--draw": draw, "--json": as_json}.items():
            if value:
                raise LlavaError(f"{flag} has no meaning with --batch: the records have pictures of their own")
        questions = open_batch(batch, out, model_path, prompt or [])
    drawing = picture_path(draw, "--draw") if draw is not None else None
    pictures = [open_picture(source) for source in image_file or ()]
    session = open_session(
        model_path,
        params,
        conv_mode=conv_mode,
        system=system,
        engine=engine,
        weights=weights,
        dtype=dtype,
        device=device,
        lora_path=lora_path,
    )
    if batch or out:
        return run_batch(questions, session, batch_size)
    interactive = is_interactive() and not prompt and not as_json
    chat = Chat(session, pictures, model=model_path, with_roles=interactive, as_json=as_json, debug=debug, draw=drawing)
    if interactive:
        note("/help lists the commands, /exit leaves")
        return chat.at_terminal()
    return chat.answer(prompt) if prompt else chat.through_pipe(sys.stdin)


def _one_dtype(dtype: str | None, fp16: bool, bf16: bool) -> str | None:
    asked = [name for name, is_asked in ((dtype, dtype), ("float16", fp16), ("bfloat16", bf16)) if is_asked]
    if len(asked) > 1:
        raise LlavaError("--dtype, --fp16 and --bf16 exclude one another; give one of them")
    return asked[0] if asked else None


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A published name, or a folder of any layout.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder.")],
    layout: Annotated[str, typer.Option(help="hf (for transformers too), original or paddle.")] = "hf",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as it is.")] = None,
    debug: Debug = False,
) -> None:
    """Write a checkpoint in another layout."""
    from paddle_llava.config import Layout
    from paddle_llava.convert import convert
    from paddle_llava.device import DTYPES

    known_layout = cast(Layout, _one_of("--layout", layout, get_args(Layout)))
    known_dtype = None if dtype is None else _one_of("--dtype", dtype, DTYPES)
    with progress_bar(f"converting {source}") as progress:
        convert(source, target, known_layout, dtype=known_dtype, progress=progress)
    note(f"{target} holds {source} in the {layout} layout")


def _one_of(flag: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise LlavaError(f"{flag}: {value[:40]!r} is not one of {', '.join(known)}{did_you_mean(value, known)}")
    return value


@app.command("export")
def export_command(
    model_path: ModelPath = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A new folder.")] = None,
    to: Annotated[str, typer.Option(help="The only one so far: openvino.")] = "openvino",
    weights: Annotated[str, typer.Option(help="int4, int8, bf16 or f32.")] = "int8",
    group_size: Annotated[
        int | None,
        typer.Option(help="Neighbours that share a scale with int4: 32, 64 or 128; default: 64, of narrow models 32."),
    ] = None,
    lora_path: Annotated[str | None, typer.Option(metavar="FOLDER", help="A LoRA adapter, merged on the way.")] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="DATA.json", help="Training data that int4 is fitted to; default: built-in dialogues."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a checkpoint as OpenVINO graphs, which run faster on a CPU."""
    if model_path is None or out is None:
        raise LlavaError(f"{'--model-path' if model_path is None else '--out'} is missing")
    _one_of("--to", to, ("openvino",))
    from paddle_llava.opening import need_openvino

    need_openvino("llava export")
    from paddle_llava.engines.openvino.export import export
    from paddle_llava.engines.openvino.formats import Formats

    formats = Formats(weights, group_size)
    if group_size is not None and weights != "int4":
        raise LlavaError(f"--group-size is for --weights int4; {weights} has no groups")
    with progress_bar(f"exporting {model_path}") as progress:
        export(model_path, out, formats, lora_path=lora_path, calibrate=calibrate, progress=progress)
    note(f"{out} holds {model_path} with {weights} weights; llava chat --model-path {out}")


@app.command()
def merge(
    model_name_or_path: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="The base model.")],
    lora_path: Annotated[str, typer.Option(metavar="FOLDER", help="The adapter.")],
    merge_model_path: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder for the whole model.")],
    debug: Debug = False,
) -> None:
    """Merge a LoRA adapter into its base model."""
    from paddle_llava.convert import convert

    with progress_bar(f"merging {lora_path}") as progress:
        convert(model_name_or_path, merge_model_path, "hf", lora_path=lora_path, progress=progress)
    note(f"{merge_model_path} holds the merged model")


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> int:
    """Show versions, devices, speed, what is missing, and the fix for each."""
    from paddle_llava.doctor import examine, print_findings

    findings, usable = examine()
    print_findings(findings, as_json=as_json)
    return 0 if usable else 1


app.command(context_settings=OVERRIDES)(pretrain)
app.command(context_settings=OVERRIDES)(finetune)
app.command("serve")(serve_command)
app.add_typer(data_app, name="data")
app.add_typer(demo_app, name="demo")
app.add_typer(eval_app, name="eval")
