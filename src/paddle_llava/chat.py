"""`llava chat`: a conversation at a terminal, through a pipe, or of questions given beforehand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from paddle_llava.console import CONTROLS, complain, note
from paddle_llava.drawing import free_path, picture_path, write_drawing
from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.generation.session import ChatSession, NoRoomForPictures, TurnStats
from paddle_llava.opening import open_model
from paddle_llava.processing.boxes import Box
from paddle_llava.processing.loading import load_image
from paddle_llava.transcript import Shown, boxes_of, save

HISTORY_LINES = 1000
COMMANDS = ("/image", "/draw", "/reset", "/save", "/help", "/exit")
HELP = """\
/image PATH or URL  show a picture with the next question
/draw [FILE]        draw the boxes of the last answer into a copy of its picture
/reset              forget the conversation and its pictures
/save FILE          write the conversation to FILE, which ends in .json or .md
/help               this list
/exit               leave, as Ctrl-D does
//question          ask a question that begins with a slash
Ctrl-C stops an answer; what was said of it stays in the conversation."""


class Picture(NamedTuple):
    """A picture and what the person called it."""

    name: str
    image: Image


def open_picture(source: str) -> Picture:
    """The picture at a path, URL or data URI. Raises `LlavaError`."""
    name = source if len(source) <= 500 else f"{source[:40]}… ({len(source)} characters)"
    return Picture(name, load_image(source, notice=note))


def open_session(
    model_path: str,
    params: SamplingParams,
    *,
    conv_mode: str | None = None,
    system: str | None = None,
    engine: str = "auto",
    weights: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    lora_path: str | None = None,
) -> ChatSession:
    """A session with the model of that name or folder; see `opening.open_model`."""
    model, processor = open_model(
        model_path, engine=engine, weights=weights, conv_mode=conv_mode, dtype=dtype, device=device, lora_path=lora_path
    )
    return ChatSession(model, processor, system=system, params=params, notice=note)


class Chat:
    """A conversation as a person leads it, line by line.

    Answers go to stdout and everything else to stderr. Each answer ends with a newline; `with_roles` puts the
    assistant's name before it, `as_json` makes it one line of JSON. `turns` are the costs of all answers so far.
    The boxes of each answer that names any are drawn to `draw`, the last one's staying.
    """

    def __init__(
        self,
        session: ChatSession,
        pictures: Iterable[Picture] = (),
        *,
        model: str = "",
        with_roles: bool = False,
        as_json: bool = False,
        debug: bool = False,
        draw: Path | None = None,
    ) -> None:
        self.session = session
        self.model = model
        self.asks, self.answers = (f"{role}: " if with_roles else "" for role in session.template.roles)
        self.as_json = as_json
        self.debug = debug
        self.waiting = list(pictures)  # for the next question
        self.draw = draw
        self.shown: list[Shown] = []  # the conversation's pictures, in order
        self.latest: Picture | None = None  # of them
        self.turns: list[TurnStats] = []

    def at_terminal(self) -> int:
        """Until /exit, Ctrl-D or Ctrl-C twice at the prompt; returns the exit code."""
        leaving = False
        with _line_editing():
            while True:
                try:
                    line = input(self.asks).strip()
                except EOFError:
                    print()
                    return 0
                except KeyboardInterrupt:
                    print()
                    if leaving:
                        return 0
                    leaving = True
                    continue
                leaving = False
                if line == "/exit":
                    return 0
                try:
                    self.take(line)
                except KeyboardInterrupt:
                    note("stopped")

    def through_pipe(self, lines: Iterable[str]) -> int:
        """A question or a command a line; exit code 2 if any failed, after all the others were taken."""
        failed = False
        for line in map(str.strip, lines):
            if line == "/exit":
                break
            failed |= not self.take(line)
        return 2 if failed else 0

    def answer(self, questions: Iterable[str]) -> int:
        """Questions as they stand, none of them a command; exit code as of `through_pipe`."""
        failed = [question for question in questions if not self._attempt(self.ask, question)]
        return 2 if failed else 0

    def take(self, line: str) -> bool:
        """One line: a command, a question or nothing. False when there is a mistake in it, which is told."""
        if _is_command(line):
            return self._attempt(self._obey, line)
        return not line or self._attempt(self.ask, line[1:] if line.startswith("//") else line)

    def _attempt(self, action: Callable[[str], None], text: str) -> bool:
        """A mistake costs no more than a line on stderr: the conversation stays as it was."""
        try:
            action(text)
        except LlavaError as error:
            complain(str(error))
            return False
        return True

    def ask(self, question: str) -> None:
        """Print the answer as it comes. Raises `LlavaError` when the question cannot be put."""
        if not question.strip():
            raise LlavaError("the question is empty")
        session, before = self.session, self.session.messages
        label = "" if self.as_json else self.answers
        answer = ""
        print(label, end="", flush=True)
        try:
            stream = session.ask(question, image=[picture.image for picture in self.waiting])
            with closing(stream):
                for piece in stream:
                    answer += piece
                    if not self.as_json:
                        safe = CONTROLS.sub("\N{REPLACEMENT CHARACTER}", piece) if sys.stdout.isatty() else piece
                        print(safe, end="", flush=True)
        except BaseException as error:
            if label or (answer and not self.as_json):
                print(flush=True)
            if isinstance(error, NoRoomForPictures):
                raise LlavaError(f"{error}; {self._put_away(error.fitting)}") from None
            raise
        finally:
            if session.messages is not before:  # also after an answer that was stopped
                self.shown += [Shown(picture.name, *picture.image.size) for picture in self.waiting]
                self.latest = self.waiting[-1] if self.waiting else self.latest
                self.waiting.clear()
                self.turns += [session.stats] if session.stats else []
        if self.as_json:
            stats = asdict(session.stats) if session.stats else None
            boxes = boxes_of(session.processor, answer, self.shown[-1] if self.shown else None)
            record = {"question": question, "answer": answer, **({"boxes": boxes} if boxes else {}), "stats": stats}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print(flush=True)
        if self.debug:
            self._tell_debug()
        if self.draw:
            self.draw_boxes(self.draw)

    def _put_away(self, fitting: int) -> str:
        """Let go of the waiting pictures after the first `fitting`, with which no question can be put; tells which."""
        self.waiting, away = self.waiting[:fitting], self.waiting[fitting:]
        more = f" and {len(away) - 3} more" if len(away) > 3 else ""
        return f"put away: {', '.join(picture.name for picture in away[:3])}{more}"

    def _obey(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if command == "/help":
            print(HELP, file=sys.stderr)
        elif command == "/reset":
            self.session.reset()
            self.waiting.clear()
            self.shown.clear()
            self.latest = None
            note("the conversation and its pictures are forgotten")
        elif command == "/image":
            self._show(argument)
        elif command == "/draw":
            self.draw_boxes(picture_path(argument, command) if argument else free_path(), command)
        elif command == "/save":
            save(argument, self.session, self.shown, self.model)
            note(f"saved to {argument}")
        else:
            hint = did_you_mean(command, COMMANDS)
            raise LlavaError(f"no command {command!r}{hint}; /help lists them, and //... asks it as a question")

    def _show(self, source: str) -> None:
        if len(source) > 1 and source[0] == source[-1] and source[0] in "'\"":  # as terminals drop files
            source = source[1:-1]
        if not source:
            raise LlavaError("/image: give the path or the URL of a picture")
        self.waiting.append(picture := open_picture(source))
        note(f"{picture.name} ({picture.image.width}x{picture.image.height}) goes with the next question")

    def boxes(self) -> list[Box]:
        """Those that the last answer names, in pixels of its picture."""
        answer = str(self.session.messages[-1].text) if self.session.messages else ""
        return self.session.processor.answer_boxes(answer, *self.latest.image.size) if self.latest else []

    def draw_boxes(self, path: Path, command: str = "") -> None:
        """Of the last answer. Without a `command`, for --draw, it may have no boxes, and a file is replaced."""
        boxes = self.boxes()
        if self.latest and boxes:
            write_drawing(path, self.latest.image, boxes, command or "--draw", anew=bool(command))
            note(f"{len(boxes)} {'box' if len(boxes) == 1 else 'boxes'} drawn to {path}")
        elif command:
            raise LlavaError("/draw: the last answer names no box of a picture")
        else:
            note(f"the answer names no box of a picture: nothing is drawn to {path}")

    def _tell_debug(self) -> None:
        stats = self.session.stats
        print(f"llava: debug: prompt {self.session.prompt!r}", file=sys.stderr)
        if stats:
            print(
                f"llava: debug: {stats.context_tokens} tokens in context, {stats.new_tokens} of them new; "
                f"first token after {stats.first_token_seconds:.3f} s; {stats.generated_tokens} generated "
                f"in {stats.seconds:.3f} s ({decode_rate([stats]):.1f} tokens/s after the first)",
                file=sys.stderr,
            )


def decode_rate(turns: Iterable[TurnStats]) -> float:
    """Tokens a second after each answer's first."""
    turns = list(turns)
    tokens = sum(max(0, turn.generated_tokens - 1) for turn in turns)
    seconds = sum(turn.seconds - turn.first_token_seconds for turn in turns)
    return tokens / seconds if tokens and seconds > 0 else 0.0


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _is_command(line: str) -> bool:
    return line.startswith("/") and not line.startswith("//")


@contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys, Tab for file names and a history that lasts, where `readline` exists (not on Windows)."""
    try:
        import readline
    except ImportError:
        yield
        return
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    history = Path(home) / "paddle-llava" / "history"
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    with suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        with suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
            history.chmod(0o600)
            readline.write_history_file(history)
