"""`llava demo`: a short dialogue about a photograph, and then the person's turn."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from paddle_llava.chat import Chat, decode_rate, is_interactive, open_picture, open_session
from paddle_llava.console import note
from paddle_llava.generation.sampling import SamplingParams

if TYPE_CHECKING:
    from paddle_llava.generation.session import ChatSession

PHOTO = Path(__file__).parent / "photos" / "china.jpg"
QUESTIONS = ("描述这张照片", "给出公交车位置的坐标")
PARAMS = SamplingParams()
RANDOM_PARAMS = SamplingParams(max_new_tokens=24)  # enough of words that mean nothing


def run_demo(image_file: str | None = None, model_path: str | None = None, *, debug: bool = False) -> int:
    """Ask about `image_file` (default: a photograph of a lake), then go on if a person is there. Returns 0.

    Without `model_path` the model is small and random, built on the spot. Raises `LlavaError`.
    """
    picture = open_picture(image_file or str(PHOTO))
    if model_path is None:
        note("no trained model comes with this version: the weights are random, so the words mean nothing yet")
        session = _random_session()
    else:
        session = open_session(model_path, PARAMS)
    chat = Chat(session, [picture], model=model_path or "random weights", with_roles=True, debug=debug)
    note(f"a dialogue about {Path(picture.name).name} ({picture.image.width}x{picture.image.height} pixels)")
    for question in QUESTIONS:
        print(f"{chat.asks}{question}")
        chat.ask(question)
    first, *_, last = chat.turns
    note(
        f"the first word came after {first.first_token_seconds:.2f} s with the picture, after "
        f"{last.first_token_seconds:.2f} s in the next turn; {decode_rate(chat.turns):.0f} tokens/s"
    )
    if not is_interactive():
        return 0
    note("your turn: type a question, or /help")
    return chat.at_terminal()


def _random_session() -> ChatSession:
    from paddle_llava.demo.checkpoint import build

    with TemporaryDirectory(prefix="paddle-llava-") as folder:
        build(Path(folder))
        return open_session(folder, RANDOM_PARAMS)
