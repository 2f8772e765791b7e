"""`llava demo`: the small trained model that comes with the package, a short dialogue, and then the person's turn."""

from __future__ import annotations

from pathlib import Path

from paddle_llava.chat import Chat, Picture, decode_rate, is_interactive, open_picture, open_session
from paddle_llava.console import note
from paddle_llava.demo.document import document_scene
from paddle_llava.errors import LlavaError
from paddle_llava.generation.sampling import SamplingParams

MODEL = "street"
QUESTIONS = ("描述这张照片", "给出公交车位置的坐标", "Describe this picture.", "Give the coordinates of the bus.")
STREET_PNG, BOX_PNG = Path("street.png"), Path("street-boxes.png")
PARAMS = SamplingParams()


def run_demo(image_file: str | None = None, model_path: str | None = None, *, debug: bool = False) -> int:
    """Ask `QUESTIONS` about `image_file` (default: a street, drawn and kept in `STREET_PNG`), and draw the boxes of the
    answers to `BOX_PNG`; then go on if a person is there. Returns 0. Raises `LlavaError`.

    Without a `model_path` it is the street model, which knows drawn streets only.
    """
    picture = open_picture(image_file) if image_file else _street()
    if image_file and not model_path:
        note("the model that comes with the package knows drawn streets only; MODEL=NAME brings a real one")
    session = open_session(model_path or MODEL, PARAMS)
    chat = Chat(session, [picture], model=model_path or MODEL, with_roles=True, debug=debug)
    note(f"a dialogue about {Path(picture.name).name} ({picture.image.width}x{picture.image.height} pixels)")
    for question in QUESTIONS:
        print(f"{chat.asks}{question}")
        chat.ask(question)
        if chat.boxes():
            chat.draw_boxes(BOX_PNG)
    first, *_, last = chat.turns
    note(
        f"the first word came after {first.first_token_seconds:.2f} s with the picture, after "
        f"{last.first_token_seconds:.2f} s in the last turn; {decode_rate(chat.turns):.0f} tokens/s"
    )
    if not is_interactive():
        return 0
    note("your turn: type a question, or /help")
    return chat.at_terminal()


def _street() -> Picture:
    image = document_scene().image
    try:
        image.save(STREET_PNG)
    except OSError as error:
        raise LlavaError(f"{str(STREET_PNG)!r} cannot be written ({error}); change to a folder of yours") from None
    return Picture(str(STREET_PNG), image)
