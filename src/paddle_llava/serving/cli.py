"""`llava serve`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from paddle_llava.errors import LlavaError
from paddle_llava.flags import ConvMode, Device, Dtype, EngineName, LoraPath, ModelPath, WeightFormat

MIB = 2**20


def serve_command(
    model_path: ModelPath = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    served_name: Annotated[
        str | None, typer.Option("--served-model-name", metavar="NAME", help="What clients call the model.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="LLAVA_API_KEY", help="Ask clients for this key.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A web page's origin that may ask; may be repeated.")
    ] = None,
    allow_private_images: Annotated[
        bool, typer.Option("--allow-private-images", help="Fetch pictures from private networks too.")
    ] = False,
    conv_mode: ConvMode = None,
    lora_path: LoraPath = None,
    temperature: Annotated[float, typer.Option(help="For requests that name none.")] = 0.2,
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 1024,
    max_batch: Annotated[int, typer.Option(help="Requests that run at a time.")] = 32,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; further ones get 429.")] = 64,
    request_timeout: Annotated[float, typer.Option(help="Seconds for one request, the wait included.")] = 600,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that answers have to end after SIGTERM.")] = 30,
    cache_mib: Annotated[
        int | None,
        typer.Option("--cache-mib", min=1, help="Memory for keys and values; default: a quarter of what is free."),
    ] = None,
    image_cache_mib: Annotated[
        int, typer.Option("--image-cache-mib", min=0, help="Memory for pictures' features.")
    ] = 128,
    max_body_mib: Annotated[int, typer.Option("--max-body-mib", help="The largest request.")] = 32,
    max_images: Annotated[int, typer.Option(help="Pictures of one request.")] = 16,
    max_pixels: Annotated[int, typer.Option(help="Pixels of one picture.")] = 50_000_000,
    max_messages: Annotated[int, typer.Option(help="Messages of one request.")] = 512,
    engine: EngineName = "auto",
    weights: WeightFormat = None,
    dtype: Dtype = None,
    device: Device = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log tracebacks of internal errors, which may quote requests.")
    ] = False,
) -> None:
    """Serve a model to many users: OpenAI's chat API, and a page to chat at."""
    if model_path is None:
        raise LlavaError("--model-path is missing: give a name such as llava-hf/llava-1.5-7b-hf, or a folder")
    if api_key is not None and not api_key.strip():
        raise LlavaError("--api-key is empty, which would let everybody in: give a key, or leave the flag away")
    try:
        from paddle_llava.serving.guard import check_origin
        from paddle_llava.serving.limits import ServingLimits
        from paddle_llava.serving.server import listen, log_to_stderr, open_service, serve
    except ImportError as error:
        raise LlavaError(
            f"{error.name} is missing; install it with: {sys.executable} -m pip install 'paddle-llava[serve]'"
        ) from None

    for origin in allow_origin or ():
        check_origin(origin)
    limits = ServingLimits(
        max_batch=max_batch,
        max_queue=max_queue,
        max_tokens=max_tokens,
        max_images=max_images,
        max_messages=max_messages,
        max_body_bytes=max_body_mib * MIB,
        bodies_bytes=8 * max_body_mib * MIB,
        max_pixels=max_pixels,
        cache_bytes=MIB if cache_mib is None else cache_mib * MIB,
        image_cache_bytes=image_cache_mib * MIB,
        request_time=request_timeout,
        drain_time=drain_timeout,
        allow_private=allow_private_images,
    )
    log_to_stderr(debug)
    with listen(host, port) as listener:  # before the weights are read, which takes long
        service = open_service(
            model_path,
            limits,
            name=served_name,
            engine=engine,
            weights=weights,
            conv_mode=conv_mode,
            lora_path=lora_path,
            dtype=dtype,
            device=device,
            temperature=temperature,
            own_cache_size=cache_mib is not None,
        )
        serve(service, listener, api_key=api_key, origins=allow_origin or ())
