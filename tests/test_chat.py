"""The chat as a person leads it: at a terminal, through a pipe, and its commands."""

from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from paddle_llava.chat import Chat, Picture, decode_rate, open_picture, open_session
from paddle_llava.drawing import write_drawing
from paddle_llava.errors import LlavaError
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.generation.session import TurnStats
from scripted_engine import scripted_session
from terminal import BACKSPACE, CTRL_C, CTRL_D, LEFT, TAB, UP, Terminal

LONG = "trees and boats " * 60


@pytest.fixture
def flower(photo: Path) -> Picture:
    return open_picture(str(photo.with_name("flower.jpg")))


def answers_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


# --- through a pipe -------------------------------------------------------------------------------


def test_stdout_has_the_answers_and_nothing_else(demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["a lake", "two\nlines", "end"]))
    assert chat.through_pipe(["what?", "", "/help", "more?", "  ", "and?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a lake\ntwo\nlines\nend\n"
    assert "/save FILE" in captured.err


def test_a_mistake_costs_its_own_line_only(demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["one", "two"]))
    lines = ["first", "/image nowhere.jpg", "/nonsense", "w" * 9000, "second"]
    assert chat.through_pipe(lines) == 2
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    assert [line[:14] for line in captured.err.splitlines()] == ["llava: error: "] * 3
    assert [message.text for message in chat.session.messages] == ["first", "one", "second", "two"]


def test_exit_leaves_the_rest_unasked(demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Chat(scripted_session(demo_checkpoint, ["one"])).through_pipe(["first", "/exit", "second"]) == 0
    assert answers_of(capsys) == ["one"]


def test_two_slashes_begin_a_question(demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["a folder", "none"]))
    assert chat.through_pipe(["//etc is what?"]) == 0
    assert chat.session.messages[0].text == "/etc is what?"
    assert chat.answer(["/reset"]) == 0  # a question given as such is never a command
    assert chat.session.messages[2].text == "/reset"
    assert answers_of(capsys) == ["a folder", "none"]


def test_an_answer_as_json(demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["公交车\n", "two"]), as_json=True)
    assert chat.answer(["什么?", "", "next"]) == 2
    first, second = map(json.loads, answers_of(capsys))
    assert (first["question"], first["answer"]) == ("什么?", "公交车\n")
    assert first["stats"]["generated_tokens"] > 3
    assert second["answer"] == "two"


def test_an_interruption_ends_a_pipe(demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = scripted_session(demo_checkpoint, ["one"])
    monkeypatch.setattr(session.engine, "decode", lambda token_ids: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Chat(session).through_pipe(["first", "second"])


def test_debug_tells_the_prompt_and_the_cost(demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Chat(scripted_session(demo_checkpoint, ["yes"]), debug=True).answer(["is it?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "yes\n"
    prompt, cost = captured.err.splitlines()
    assert "USER: is it? ASSISTANT: yes</s>" in prompt
    assert "tokens in context" in cost
    assert "tokens/s" in cost


# --- pictures -------------------------------------------------------------------------------------


def test_a_picture_goes_with_one_question(demo_checkpoint: Path, flower: Picture, photo: Path) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["one", "two", "three"]), [flower])
    assert chat.take("first")
    assert chat.take(f"/image '{photo}'")
    assert chat.take("second")
    assert chat.take("third")
    assert [message.images for message in chat.session.messages] == [1, 0, 1, 0, 0, 0]
    assert [shown.name for shown in chat.shown] == [flower.name, str(photo)]


def test_a_picture_waits_for_a_question_that_can_be_put(demo_checkpoint: Path, flower: Picture) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["one"]), [flower])
    assert not chat.take("w" * 9000)
    assert chat.waiting == [flower]
    assert chat.take("shorter")
    assert chat.waiting == []
    assert chat.session.messages[0].images == 1


def test_a_picture_that_no_question_can_be_asked_about_is_put_away(
    demo_checkpoint: Path, flower: Picture, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = scripted_session(demo_checkpoint, ["one", "two"])
    limit = session.engine.config.text.max_position_embeddings
    features = session.processor.feature_counts(np.array([flower.image.size[::-1]]))[0]
    chat = Chat(session, [flower] * (limit // features))
    assert chat.take(f"/image {photo}")
    assert not chat.take("what?")
    waiting = len(chat.waiting)
    assert 0 < waiting < limit // features
    names, more = ", ".join([flower.name] * 3), limit // features + 1 - waiting - 3
    assert f"fewer pictures, or start anew; put away: {names} and {more} more\n" in capsys.readouterr().err
    assert session.engine.encoded == 0
    assert chat.take("what?")
    assert chat.take(f"/image {photo}")
    assert not chat.take("and this?")
    assert capsys.readouterr().err.endswith(f"put away: {photo}\n")
    assert chat.take("why?")
    assert session.engine.encoded == waiting == len(chat.shown)


def test_reset_forgets_all(demo_checkpoint: Path, flower: Picture) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["one", "two"]), [flower])
    for line in ("first", f"/image {flower.name}", "/reset", "second"):
        assert chat.take(line)
    assert [(message.text, message.images) for message in chat.session.messages] == [("second", 0), ("two", 0)]
    assert chat.shown == []


def test_a_long_data_uri_has_a_short_name(photo: Path) -> None:
    import base64

    uri = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()
    assert len(open_picture(uri).name) < 80


# --- boxes ----------------------------------------------------------------------------------------

BOX = "The boat is at [0.25, 0.25, 0.75, 0.50]."
DRAWN = [[160.0, 54.0, 480.0, 214.0]]  # of the square-padded 640x427, 106 pixels of padding above


def strokes(path: Path) -> tuple[int, int, int, int]:
    """Where the red frame in a drawing is: left, top, right, bottom."""
    pixels = np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)
    rows, columns = np.nonzero((abs(pixels - [0xE6, 0x19, 0x4B]) < 3).all(2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_draw_frames_the_boxes_of_the_last_answer_in_the_picture(
    demo_checkpoint: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chat = Chat(scripted_session(demo_checkpoint, ["no box", BOX]), [open_picture(str(photo))])
    assert not chat.take("/draw early.png")
    assert chat.take("what?")
    assert not chat.take("/draw early.png")
    assert chat.take("where?")
    assert chat.take("/draw where.png")
    assert chat.take("/draw")
    assert chat.take("/draw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes-2.png", "boxes.png", "where.png"]
    left, top, right, bottom = strokes(tmp_path / "where.png")
    assert (left, top, right, bottom) == pytest.approx(DRAWN[0], abs=1.01)
    assert PIL.Image.open(tmp_path / "boxes.png").size == (640, 427)


def test_draw_spoils_no_file(demo_checkpoint: Path, photo: Path, tmp_path: Path, capsys) -> None:
    chat = Chat(scripted_session(demo_checkpoint, [BOX]), [open_picture(str(photo))])
    (tmp_path / "mine.png").write_text("mine")
    assert chat.take("where?")
    capsys.readouterr()
    for name in ("mine.png", "mine.txt", "nowhere/mine.png"):
        assert not chat.take(f"/draw {tmp_path}/{name}")
    exists, ending, nowhere = capsys.readouterr().err.splitlines()
    assert "already exists" in exists
    assert "ends in .png" in ending
    assert "cannot be written" in nowhere
    assert (tmp_path / "mine.png").read_text() == "mine"


@pytest.mark.parametrize("anew", [True, False])
def test_a_drawing_that_cannot_be_encoded_touches_no_file(tmp_path: Path, anew: bool) -> None:
    wide, path = PIL.Image.new("RGB", (17_000, 4)), tmp_path / "wide.webp"  # WebP ends at 16,383
    if not anew:
        path.write_text("mine")
    with pytest.raises(LlavaError, match="cannot be written"):
        write_drawing(path, wide, [(1, 1, 50, 3)], "--draw", anew=anew)
    assert path.exists() != anew
    assert anew or path.read_text() == "mine"


def test_the_draw_flag_draws_each_answer_that_has_boxes(
    demo_checkpoint: Path, photo: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out.jpg"
    session = scripted_session(demo_checkpoint, ["nothing", BOX, "0.1, 0.4, 0.2, 0.5; 0.3, 0.4, 0.4, 0.5"])
    chat = Chat(session, [open_picture(str(photo))], draw=out)
    assert chat.answer(["what?"]) == 0
    assert not out.exists()
    assert "names no box" in capsys.readouterr().err
    assert chat.answer(["where?"]) == 0
    first = out.read_bytes()
    assert chat.answer(["and all?"]) == 0
    assert "2 boxes drawn" in capsys.readouterr().err
    assert out.read_bytes() != first
    assert PIL.Image.open(out).format == "JPEG"


def test_boxes_as_json_are_in_pixels_of_their_picture(
    demo_checkpoint: Path, photo: Path, tmp_path: Path, capsys
) -> None:
    PIL.Image.new("RGB", (100, 200)).save(tmp_path / "tall.png")
    session = scripted_session(demo_checkpoint, [BOX, BOX, "none", BOX])
    chat = Chat(session, as_json=True)
    chat.answer(["without a picture?"])
    chat.take(f"/image {photo}")
    chat.answer(["where?", "what?"])
    chat.take(f"/image {tmp_path}/tall.png")
    chat.answer(["here?"])
    lines = [json.loads(line).get("boxes") for line in answers_of(capsys)]
    tall = [[0.0, 50.0, 100.0, 100.0]]  # 50 pixels of padding on either side
    assert lines == [None, DRAWN, None, tall]
    assert chat.take(f"/save {tmp_path}/talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message.get("boxes") for message in saved] == [None, None, None, DRAWN, None, None, None, tall]


# --- saving ---------------------------------------------------------------------------------------


def test_saving_as_json(demo_checkpoint: Path, flower: Picture, tmp_path: Path) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["花", "two"], system="Be brief."), [flower], model="demo")
    for line in ("这是什么?", "and?", f"/save {tmp_path}/talk.json"):
        assert chat.take(line)
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8")) == {
        "model": "demo",
        "template": "vicuna_v1",
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "这是什么?", "images": [flower.name]},
            {"role": "assistant", "content": "花"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "two"},
        ],
    }
    assert "这是什么?" in (tmp_path / "talk.json").read_text(encoding="utf-8")


def test_saving_as_markdown(demo_checkpoint: Path, flower: Picture, tmp_path: Path) -> None:
    chat = Chat(scripted_session(demo_checkpoint, ["a flower"]), [flower], model="demo")
    assert chat.take("what?")
    assert chat.take(f"/save {tmp_path}/talk.md")
    assert (tmp_path / "talk.md").read_text() == (
        f"# A conversation with demo\n\n![picture](<{flower.name}>)\n\n**USER:** what?\n\n**ASSISTANT:** a flower\n"
    )


def test_pictures_of_forgotten_exchanges_keep_their_names(
    demo_checkpoint: Path, flower: Picture, tmp_path: Path
) -> None:
    notices: list[str] = []
    chat = Chat(scripted_session(demo_checkpoint, ["one", "two"], notice=notices.append), [flower])
    assert chat.take("first " + "x" * 900)
    assert chat.take("second " + "x" * 1000)
    assert "forgotten" in notices[0]
    assert chat.take(f"/save {tmp_path}/talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message.get("images") for message in saved] == [[flower.name], None]


# --- at a terminal --------------------------------------------------------------------------------


@pytest.fixture
def person(demo_checkpoint: Path, tmp_path: Path):
    """Gives terminals with a scripted chat, each with the history of the one before."""

    def sit_down(*answers: str, delay: float = 0.0) -> Terminal:
        script = Path(__file__).with_name("terminal.py")
        state = str(tmp_path / "state")
        return Terminal(sys.executable, script, demo_checkpoint, str(delay), *answers, XDG_STATE_HOME=state)

    return sit_down


def said(file: Path) -> list[str]:
    return [message["content"] for message in json.loads(file.read_text())["messages"]]


def test_a_line_can_be_edited_and_recalled(person, tmp_path: Path) -> None:
    with person("a lake", "a boat") as terminal:
        terminal.wait_for("USER: ")
        terminal.type(f"wxt{LEFT}{BACKSPACE}ha\n")
        terminal.wait_for("ASSISTANT: a lake")
        terminal.wait_for("USER: ")
        terminal.type("/help\n")
        terminal.wait_for("/save FILE")
        terminal.wait_for("USER: ")
        terminal.type(f"{UP}{UP} else\n")
        terminal.wait_for("ASSISTANT: a boat")
        terminal.wait_for("USER: ")
        terminal.type(f"/save {tmp_path}/talk.json\n")
        terminal.wait_for("saved")
        terminal.wait_for("USER: ")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    assert said(tmp_path / "talk.json") == ["what", "a lake", "what else", "a boat"]


def test_ctrl_c_stops_an_answer_and_not_the_chat(person, tmp_path: Path) -> None:
    with person(LONG, "a boat", delay=0.02) as terminal:
        terminal.wait_for("USER: ")
        terminal.type("tell me\n")
        terminal.wait_for("ASSISTANT: trees")
        terminal.type(CTRL_C)
        terminal.wait_for("stopped")
        terminal.wait_for("USER: ")
        terminal.type("and then?\n")
        terminal.wait_for("ASSISTANT: a boat")
        terminal.wait_for("USER: ")
        terminal.type(f"/save {tmp_path}/talk.json\n")
        terminal.wait_for("saved")
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0
    first, stopped, second, answer = said(tmp_path / "talk.json")
    assert (first, second, answer) == ("tell me", "and then?", "a boat")
    assert LONG.startswith(stopped)
    assert 0 < len(stopped) < len(LONG) / 2


def test_ctrl_c_clears_the_line_and_twice_leaves(person) -> None:
    with person("a boat") as terminal:
        terminal.wait_for("USER: ")
        terminal.type(f"never ask{CTRL_C}")
        terminal.wait_for("USER: ")
        terminal.type("ask this\n")
        terminal.wait_for("a boat")
        terminal.wait_for("USER: ")
        terminal.type(CTRL_C)
        terminal.wait_for("USER: ")
        terminal.type(CTRL_C)
        assert terminal.exit_code() == 0


def test_a_mistake_at_the_terminal_is_told_and_the_chat_goes_on(person) -> None:
    with person("fine") as terminal:
        terminal.wait_for("USER: ")
        terminal.type("/hlep\n")
        terminal.wait_for("llava: error: no command '/hlep' (did you mean '/help'?)")
        terminal.wait_for("USER: ")
        terminal.type("w" * 3000 + "\n")
        terminal.wait_for("llava: error: the question")
        terminal.wait_for("USER: ")
        terminal.type("ok?\n")
        terminal.wait_for("ASSISTANT: fine")


def test_the_history_lasts_and_is_private(person, tmp_path: Path) -> None:
    with person("one") as terminal:
        terminal.wait_for("USER: ")
        terminal.type("a secret question\n")
        terminal.wait_for("one")
        terminal.wait_for("USER: ")
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0
    history = tmp_path / "state" / "paddle-llava" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    history.write_text("\n".join(f"question {i}" for i in range(5000)) + "\nthe last\n")
    with person("two") as terminal:
        terminal.wait_for("USER: ")
        terminal.type(f"{UP}\n")
        terminal.wait_for("the last")
        terminal.wait_for("ASSISTANT: two")
        terminal.wait_for("USER: ")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    assert len(history.read_text().splitlines()) <= 1000


def test_tab_completes_a_file_name(person, photo: Path) -> None:
    with person("a lake") as terminal:
        terminal.wait_for("USER: ")
        terminal.type(f"/image {photo.parent}/chi{TAB}\n")
        terminal.wait_for("china.jpg (640x427)")


def test_no_answer_takes_over_the_terminal(person) -> None:
    with person("\x1b[2Jred\x07\r") as terminal:
        terminal.wait_for("USER: ")
        terminal.type("go\n")
        terminal.wait_for("ASSISTANT: \ufffd[2Jred\ufffd\ufffd\r\n")


# --- opening --------------------------------------------------------------------------------------


def test_a_guessed_template_is_said(demo_checkpoint: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = tmp_path / "llava-llama-2-tiny"
    folder.symlink_to(demo_checkpoint)
    with pytest.warns(UserWarning, match="guessed from the folder's name"):  # a note of the command's
        assert open_session(str(folder), SamplingParams()).template.name == "llava_llama_2"
    recwarn.clear()
    assert open_session(str(folder), SamplingParams(), conv_mode="v1").template.name == "vicuna_v1"
    assert not recwarn


def test_what_is_wrong_is_found_before_the_weights_are_read(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import paddle_llava.llava

    monkeypatch.delattr(paddle_llava.llava.LlavaForConditionalGeneration, "from_pretrained")
    for wrong in ({"conv_mode": "vicuna_v9"}, {"dtype": "float7"}, {"device": "toaster"}):
        with pytest.raises(LlavaError, match=next(iter(wrong.values()))):
            open_session(str(demo_checkpoint), SamplingParams(), **wrong)


def test_the_session_answers_the_same_through_chat(demo_session, flower: Picture, monkeypatch, capsys) -> None:
    expected = "".join(demo_session.ask("what?", image=flower.image))
    demo_session.reset()
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?\n"))
    assert Chat(demo_session, [flower]).through_pipe(sys.stdin) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_the_decode_rate_leaves_first_tokens_out() -> None:
    turns = [TurnStats(9, 9, 11, first_token_seconds=3.0, seconds=4.0), TurnStats(9, 9, 1, 1.0, 1.0)]
    assert decode_rate(turns) == pytest.approx(10.0)
    assert decode_rate([]) == decode_rate([TurnStats(9, 9)]) == 0.0
