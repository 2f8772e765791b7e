"""LLaVA 1.5 and 1.6 on PaddlePaddle.

    from paddle_llava import ChatSession, LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    processor = LlavaProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    for piece in ChatSession(model, processor).ask("What is in the picture?", image="bus.jpg"):
        print(piece, end="", flush=True)

Importing the package is light: Paddle is loaded when a name that needs it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paddle_llava import environment

environment.prepare()

if TYPE_CHECKING:
    from paddle_llava.config import LlavaConfig
    from paddle_llava.errors import LlavaError
    from paddle_llava.generation.sampling import SamplingParams
    from paddle_llava.generation.session import ChatSession
    from paddle_llava.llava import LlavaForConditionalGeneration
    from paddle_llava.processing.processor import LlavaProcessor

__version__ = "0.1.0"

_HOME = {
    "ChatSession": "generation.session",
    "LlavaConfig": "config",
    "LlavaError": "errors",
    "LlavaForConditionalGeneration": "llava",
    "LlavaProcessor": "processing.processor",
    "SamplingParams": "generation.sampling",
}
__all__ = [
    "ChatSession",
    "LlavaConfig",
    "LlavaError",
    "LlavaForConditionalGeneration",
    "LlavaProcessor",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'paddle_llava' has no attribute {name!r}")
    return getattr(import_module(f"paddle_llava.{_HOME[name]}"), name)
