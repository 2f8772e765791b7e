"""Flags that several commands have, each with one meaning and one help text."""

from __future__ import annotations

from typing import Annotated

import typer

ModelPath = Annotated[str | None, typer.Option(metavar="NAME|FOLDER", help="A published name, or a folder.")]
LoraPath = Annotated[str | None, typer.Option(metavar="FOLDER", help="A LoRA adapter, merged on loading.")]
ConvMode = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="A conversation template; default: the checkpoint's.")
]
EngineName = Annotated[
    str, typer.Option("--engine", help="paddle or openvino; auto: openvino on a CPU where it is installed.")
]
WeightFormat = Annotated[
    str | None, typer.Option("--weights", help="int4, int8, bf16 or f32, for openvino; default: int8, if small f32.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: the engine's and the device's.")
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="cpu, gpu, gpu:1, npu, ...; default: the best.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show prompts, timings, and the traceback of an internal error.")]
